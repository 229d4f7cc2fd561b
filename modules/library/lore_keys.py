"""Whether one of the keys of a lore entry stands in a text."""

from __future__ import annotations

import time
from collections.abc import Sequence

import regex

LONGEST_PATTERN = 2000
SECONDS = 0.5
"""How long all patterns of a book may look together: they come from strangers."""
_FLAGS = {"i": regex.IGNORECASE, "m": regex.MULTILINE, "s": regex.DOTALL}


def word_in(text: str, keys: Sequence[str], *, case_sensitive: bool = False, whole_words: bool = False) -> str | None:
    """The first of `keys` that stands in `text`, None where none does."""
    fold = str if case_sensitive else str.casefold
    text = fold(text)
    for key in keys:
        wanted = fold(key.strip())
        if wanted and wanted in text and (not whole_words or _as_a_word(wanted, text)):
            return key
    return None


def pattern_in(text: str, patterns: Sequence[str], until: float, *, case_sensitive: bool = False) -> str | None:
    """The first of `patterns` that matches in `text` before `until` (by time.monotonic); one that is no pattern never does."""
    for pattern in patterns:
        left = until - time.monotonic()
        if left <= 0:
            return None
        try:
            if pattern and compiled(pattern, case_sensitive).search(text, timeout=left):
                return pattern
        except (ValueError, TimeoutError, MemoryError):
            continue
    return None


def compiled(pattern: str, case_sensitive: bool = False) -> regex.Pattern[str]:
    """A key that is a pattern, which may be written /pattern/flags as in JavaScript. Raises ValueError where it is none."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a pattern of {len(pattern)} characters")
    flags = 0 if case_sensitive else regex.IGNORECASE
    if pattern.startswith("/") and "/" in pattern[1:]:
        pattern, _, letters = pattern[1:].rpartition("/")
        flags = 0
        for letter in letters:
            flags |= _FLAGS.get(letter, 0)
    try:
        return regex.compile(pattern, flags)
    except (regex.error, OverflowError, MemoryError, RecursionError, KeyError, TypeError, IndexError) as error:
        raise ValueError(str(error)) from None


def _as_a_word(key: str, text: str) -> bool:
    return regex.search(rf"(?<!\w){regex.escape(key)}(?!\w)", text) is not None
