"""One row of a data set, as every kind of file gives it: its values are whole texts, and numbers or nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
DEEPEST = 200
"""Levels of lists and objects within each other."""


@dataclass(frozen=True)
class Broken:
    """In place of a row that cannot be read: why."""

    reason: str


@dataclass(frozen=True)
class Note:
    """What is told about a file as a whole."""

    text: str


def cleaned(value: Any, levels: int = DEEPEST) -> Any:
    """The value with nothing where programs write NaN or Infinity. Raises ValueError for what no tokenizer could hold."""
    match value:
        case str():
            return whole(value)
        case float() if not math.isfinite(value):
            return None
        case dict() | list() if levels == 0:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        case dict():
            return {whole(key): cleaned(item, levels - 1) for key, item in value.items()}
        case list():
            return [cleaned(item, levels - 1) for item in value]
    return value


def whole(text: str) -> str:
    """The text, where all of it is characters. Raises ValueError."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if "\udc80" <= text[error.start] <= "\udcff":
                raise ValueError(f"{_before(text, error.start)} has bytes that are not UTF-8") from None
            raise ValueError(f"{_before(text, error.start)} has half of a surrogate pair, which is no character") from None
    return text


def _before(text: str, at: int) -> str:
    before = text[max(0, at - 20) : at].encode(errors="replace").decode()
    return f"the text after {before!r}" if before else "the beginning of a text"
