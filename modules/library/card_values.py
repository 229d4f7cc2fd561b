"""Values as strangers write them into cards: one that is not what it must be counts as absent."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

_DEEPEST = 60
_LARGEST = 10**15


def clean(value: Any, levels: int = _DEEPEST) -> Any:
    """A value of JSON or YAML as JSON can hold it: whole characters, finite numbers, names that are texts; None for the rest."""
    match value:
        case str():
            return value.replace("\r\n", "\n").encode("utf-8", "replace").decode()
        case bool() | None:
            return value
        case int():
            return value if abs(value) <= _LARGEST else None
        case float():
            return value if math.isfinite(value) else None
        case dict() if levels:
            return {clean(str(key)): clean(item, levels - 1) for key, item in value.items()}
        case list() | tuple() | set() if levels:
            return [clean(item, levels - 1) for item in value]
        case datetime.date() | datetime.datetime():
            return value.isoformat()
        case _:
            return None


def text_of(value: Any) -> str | None:
    """A text, or a number as one; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else None


def number(value: Any) -> float | int | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def whole(value: Any, least: int) -> int | None:
    """A whole number of at least `least`; None for anything else."""
    found = number(value)
    return int(found) if found is not None and found >= least else None


def words(value: Any) -> tuple[str, ...]:
    """A list of texts, or one text with commas between them; what is no text in it is left out."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(text.strip() for item in items if (text := text_of(item)) and text.strip())


def kept(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without those that say nothing."""
    return {key: value for key, value in values.items() if value not in (None, "", [], {})}
