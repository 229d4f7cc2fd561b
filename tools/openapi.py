"""Write docs/openapi.json, the API as programs read it: `python -m tools.openapi`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from modules.app import App
from modules.settings.server import ServerOptions
from modules.web import build

PAGE = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"


def current() -> str:
    with tempfile.TemporaryDirectory() as folder:
        app = App(Path(folder), ServerOptions(nowebui=True))
        try:
            return json.dumps(build(app).openapi(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        finally:
            app.close()


if __name__ == "__main__":
    PAGE.write_text(current(), encoding="utf-8")
