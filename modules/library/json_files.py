"""JSON files of a model's folder, as people and programs really write them: a byte order mark at the head is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.library.real_files import check_real


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        check_real(path)
        raise UserError(f"{path.name} in {path.parent.name} is not valid JSON. Download it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path.name} in {path.parent.name} is not a JSON object. Download it again.")
    return value
