"""Fetch a model into models/, or an adapter into loras/: see `python download-model.py --help`."""

import sys

from modules.library.terminal import main

if __name__ == "__main__":
    sys.exit(main())
