"""The entries of a JSON file one by one, so that a broken one takes none of the others along: of a list, or one on each line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from modules.chats.remarks import Remark
from modules.errors import UserError
from modules.settings.texts import check_text

Known = Callable[[Any], bool]
"""Whether a value is what is looked for."""
_LISTS = ("conversations", "items", "chats", "data")
_LIST = re.compile(rf'\s*\{{\s*"(?:{"|".join(_LISTS)})"\s*:\s*(?=\[)')
_SPACE = re.compile(r"[ \t\r\n]*")
_TITLE = re.compile(r'"(?:title|name)"[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.){1,800}")')
_HEAD = 4000
"""Characters of a broken entry in which its title is looked for."""
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class Entry:
    """number: its place in the file, from 1. value: what it holds, or problem: why it cannot be read; title: as far as it is known."""

    number: int
    value: Any = None
    problem: Remark | None = None
    title: str = ""


def entries_of(text: str, known: Known, part: Known) -> list[Entry]:
    """Those of the file's list, those of its lines, or the one value that it is.

    known: a chat; with it the next entry is found behind a broken one, and a list of them within an object. part: what may
    stand on a line as well, such as a message.
    """
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        return list(_of_list(text, start, known))
    value, end, problem = _value(text, start)
    if problem is None and _skip(text, end) == len(text):
        inner = [value[key] for key in _LISTS if key in value] if isinstance(value, dict) and not known(value) else []
        items = next((items for items in inner if isinstance(items, list) and any(map(known, items))), [value])
        return [_entry(number, item) for number, item in enumerate(items, 1)]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    others = [_of_line(number, line) for number, line in lines] if len(lines) > 1 else []
    if any(known(entry.value) or part(entry.value) for entry in others):
        return others
    opened = _LIST.match(text, start)
    others = list(_of_list(text, opened.end() if opened else start - 1, known))  # or without its beginning
    if any(known(entry.value) for entry in others):
        return others
    return [Entry(1, None, problem or Remark("json", {"at": end - start}), _title(text, start))]


def _of_line(number: int, line: str) -> Entry:
    start = _skip(line, 0)
    value, end, problem = _value(line, start)
    if problem is None and _skip(line, end) == len(line):
        return _entry(number, value)
    return Entry(number, None, problem or Remark("json", {"at": end - start}), _title(line, start))


def _of_list(text: str, start: int, known: Known) -> Iterator[Entry]:
    """start: where its bracket is, or would be."""
    at, number = _skip(text, start + 1), 0
    left = 4 * len(text) + 100_000  # characters that may be read in the search for what follows broken entries
    while at < len(text) and not (text[at] == "]" and _skip(text, at + 1) == len(text)):
        number += 1
        value, end, problem = _value(text, at)
        after = _skip(text, end)
        if problem is None and not known(value) and text[after : after + 1] not in (",", "]", ""):
            problem = Remark("json", {"at": end - at})  # a whole value by chance
        if problem is None:
            yield _entry(number, value)
            at = _skip(text, after + 1) if text[after : after + 1] == "," else after
            continue
        found, left = _next(text, at + 1, known, left)
        if found == len(text) and left <= 0:
            problem = Remark("rest")
        elif found == len(text) and not text.rstrip().endswith(("]", "}")):
            problem = Remark("cut")
        yield Entry(number, None, problem, _title(text, at))
        at = found


def _next(text: str, at: int, known: Known, left: int) -> tuple[int, int]:
    """(where the next entry begins that is whole, or the end of the text; what is left of the characters that may be read)."""
    while left > 0 and (found := text.find("{", at)) >= 0:
        value, end, problem = _value(text, found)
        if problem is None and known(value):
            return found, left
        left -= end - found + 100
        at = end if problem is None else found + 1
    return len(text), left


def _value(text: str, at: int) -> tuple[Any, int, Remark | None]:
    """(the value that begins at a place, where it ends or breaks, what is wrong with it)."""
    try:
        return *_decode(text, at), None
    except json.JSONDecodeError as error:
        return None, max(at, error.pos), Remark("json", {"at": max(0, error.pos - at)})
    except ValueError:  # a number of more digits than Python reads
        return None, at, Remark("json", {"at": 0})
    except RecursionError:
        return None, at, Remark("deep")


def _entry(number: int, value: Any) -> Entry:
    try:
        check_text(value)
    except UserError:
        return Entry(number, None, _no_text(value), title_of_value(value))
    return Entry(number, value, None, title_of_value(value))


def _no_text(value: Any) -> Remark:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        escaped = 0xDC80 <= ord(error.object[error.start]) <= 0xDCFF  # as bytes that are no UTF-8 are decoded
        return Remark("bytes" if escaped else "half")
    except RecursionError:
        pass
    return Remark("deep")


def title_of_value(value: Any) -> str:
    """The title that another program gave a chat, whatever its form; "" for none."""
    inner = value.get("chat") if isinstance(value, dict) else None
    titles = [part.get(key) for part in (value, inner) if isinstance(part, dict) for key in ("title", "name")]
    return next((_clean(title) for title in titles if isinstance(title, str) and title.strip()), "")


def _title(text: str, at: int) -> str:
    found = _TITLE.search(text, at, at + _HEAD)
    with suppress(ValueError):
        return _clean(json.loads(found[1], strict=False)) if found else ""
    return ""


def _clean(title: str) -> str:
    return " ".join(title.encode("utf-8", "replace").decode().split())[:200]


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
