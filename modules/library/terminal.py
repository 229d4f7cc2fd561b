"""The command line of download-model.py."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from modules.errors import UserError
from modules.library.starter import fetch_starter, starter_as_transformers

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status. What the user can act on is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except UserError as error:
        print(error.message, file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        print(f"{error.filename or options.model_dir}: {error.strerror}. Make room, or choose another folder.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="download-model.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="`starter`: a small model to begin with")
    parser.add_argument("--as", dest="form", choices=["gguf", "transformers"], default="gguf", help="form of the starter model")
    parser.add_argument("--model-dir", type=Path, default=ROOT / "models", help="where models are put (default: models/)")
    parser.add_argument("--check", action="store_true", help="compare the SHA-256 of what is there")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.model == "starter":
        if options.form == "transformers":
            starter_as_transformers(options.model_dir)
        else:
            fetch_starter(options.model_dir, check=options.check)
