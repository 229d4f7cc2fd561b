"""Write docs/settings.md from the settings classes: `python -m tools.settings_table`."""

from __future__ import annotations

from pathlib import Path

from modules.generation.sampling import SamplingParams
from modules.loaders.options import LoadOptions
from modules.settings.server import ServerOptions
from modules.settings.tables import settings_page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"


def current() -> str:
    return settings_page([("Server", ServerOptions), ("Loading a model", LoadOptions), ("Sampling", SamplingParams)])


if __name__ == "__main__":
    PAGE.write_text(current(), encoding="utf-8")
