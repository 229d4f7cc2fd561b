"""Lore books as cards hold them (`character_book` of V2 and V3, SillyTavern's world info) to a LoreBook and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modules.library.card_values import kept, number, text_of, whole, words
from modules.library.lore import LoreBook, LoreEntry
from modules.library.lore_keys import compiled

_OF_BOOK = ("entries", "scan_depth", "token_budget", "recursive_scanning")
_OF_ENTRY = (
    "keys", "secondary_keys", "content", "selective", "constant", "enabled", "case_sensitive", "use_regex", "insertion_order",
    "priority", "position",
)  # fmt: skip
_WORLD_INFO = {"key": "keys", "keysecondary": "secondary_keys", "order": "insertion_order", "caseSensitive": "case_sensitive"}
_WORLD_INFO_EXTENSIONS = {
    "position": "position", "depth": "depth", "probability": "probability", "selectiveLogic": "selectiveLogic",
    "scanDepth": "scan_depth", "matchWholeWords": "match_whole_words", "group": "group", "sticky": "sticky",
    "cooldown": "cooldown", "delay": "delay",
}  # fmt: skip


def read_book(value: Any) -> tuple[LoreBook | None, list[int]]:
    """(a book, the numbers from 1 of its entries that cannot be read); None where there is no book."""
    if not isinstance(value, dict):
        return None, []
    listed = value.get("entries")
    entries = list(listed.values()) if isinstance(listed, dict) else listed if isinstance(listed, list) else []
    read = [_entry(entry) for entry in entries]
    book = LoreBook(
        entries=tuple(entry for entry in read if entry is not None),
        scan_depth=whole(value.get("scan_depth"), 0),
        token_budget=whole(value.get("token_budget"), 1),
        recursive=value.get("recursive_scanning") is True,
        others=kept({key: item for key, item in value.items() if key not in _OF_BOOK}),
    )
    return book, [at for at, entry in enumerate(read, 1) if entry is None]


def _entry(value: Any) -> LoreEntry | None:
    if not isinstance(value, dict):
        return None
    if "keys" not in value and "key" in value:
        value = _of_world_info(value)
    content = text_of(value.get("content"))
    if content is None:
        return None
    extensions = value.get("extensions")
    first = value.get("position") == "before_char" or (
        value.get("position") != "after_char" and isinstance(extensions, dict) and extensions.get("position") == 0
    )
    return LoreEntry(
        content=content,
        keys=words(value.get("keys")),
        secondary_keys=words(value.get("secondary_keys")),
        selective=value.get("selective") is True,
        constant=value.get("constant") is True,
        enabled=value.get("enabled") is not False,
        case_sensitive=value.get("case_sensitive") is True,
        use_regex=value.get("use_regex") is True,
        order=number(value.get("insertion_order")) or 0,
        priority=number(value.get("priority")),
        position="before_char" if first else "after_char",
        others=kept({key: item for key, item in value.items() if key not in _OF_ENTRY}),
    )


def _of_world_info(value: Mapping[str, Any]) -> dict[str, Any]:
    entry = {_WORLD_INFO.get(key, key): item for key, item in value.items() if key not in ("disable", *_WORLD_INFO_EXTENSIONS)}
    own = {new: value[old] for old, new in _WORLD_INFO_EXTENSIONS.items() if value.get(old) is not None}
    extensions = value.get("extensions")
    return {
        **entry,
        "enabled": value.get("disable") is not True,
        "extensions": {**(extensions if isinstance(extensions, dict) else {}), **own},
    }


def as_book(book: LoreBook) -> dict[str, Any]:
    """A book as V2 and V3 have it, which `read_book` reads as the same."""
    numbers = {"scan_depth": book.scan_depth, "token_budget": book.token_budget}
    return {
        "extensions": {},
        **book.others,
        **{key: value for key, value in numbers.items() if value is not None},
        "recursive_scanning": book.recursive,
        "entries": [_as_entry(entry) for entry in book.entries],
    }


def _as_entry(entry: LoreEntry) -> dict[str, Any]:
    return {
        "extensions": {},
        **entry.others,
        "keys": list(entry.keys),
        "secondary_keys": list(entry.secondary_keys),
        "content": entry.content,
        "selective": entry.selective,
        "constant": entry.constant,
        "enabled": entry.enabled,
        "case_sensitive": entry.case_sensitive,
        "use_regex": entry.use_regex,
        "insertion_order": entry.order,
        "position": entry.position,
        **({} if entry.priority is None else {"priority": entry.priority}),
    }


def broken_patterns(book: LoreBook) -> list[str]:
    """Keys of entries whose keys are patterns, which are none."""

    def broken(key: str) -> bool:
        try:
            compiled(key)
        except ValueError:
            return True
        return False

    return [key for entry in book.entries if entry.use_regex for key in entry.keys if broken(key)]


def without_effect(book: LoreBook) -> list[str]:
    """The names of what SillyTavern keeps with entries, is set, and does nothing here."""
    return sorted({name for entry in book.entries for name in _set(entry)})


def _set(entry: LoreEntry) -> Iterator[str]:
    chance = number(entry.extension("probability"))
    if chance is not None and chance < 100 and entry.extension("useProbability") is not False:
        yield "probability"
    for name in ("group", "sticky", "cooldown", "delay", "delay_until_recursion", "vectorized"):
        if entry.extension(name):
            yield name
    if entry.extension("position") in (2, 3, 5, 6, 7):
        yield "position"
