"""Rows of JSON files, one by one: a list of them, a list under a name, or a row on each line. A broken row costs itself alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from modules.errors import UserError
from modules.training.encodings import open_text
from modules.training.row import Broken, Row, cleaned

_CHUNK = 1 << 20
_NESTING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_ANY_OBJECT = re.compile(r"[,}\]]\s*(\{)")
_SPACE = re.compile(r"[ \t\r\n]*")


class SeveralLists(UserError):
    """A file with more than one list of rows, none of which was asked for. lists: how many rows each has, by name."""

    def __init__(self, file: str, lists: dict[str, int]) -> None:
        told = ", ".join(f"{name} ({count} rows)" for name, count in lists.items())
        first = next(iter(lists))
        super().__init__(f"{file} holds several lists: {told}. Choose one: write {file}:{first}, for example.", param="dataset")
        self.file = file
        self.lists = lists


def json_rows(path: Path, wanted: str = "") -> Iterator[Row | Broken]:
    """The rows of a .json or .jsonl file; `wanted` names one list of several. Raises UserError where it holds no rows."""
    with open_text(path) as file:
        lines = _has_a_row_on_each_line(file, named_lines=path.suffix.lower() == ".jsonl")
        file.seek(0)
        if lines:
            yield from _lines(file)
        else:
            yield from _list(file, path.name, wanted)


def _has_a_row_on_each_line(file: TextIO, *, named_lines: bool) -> bool:
    """A look at the first two lines: .json files of such lines are as frequent as .jsonl files that hold a list."""
    first = _next_line(file)
    if first.startswith("[") or not first:
        return named_lines and _value(first) is not None
    if named_lines and first != "{":
        return True
    second = _next_line(file)
    if not second.startswith("{") or first[-1] in "[{,:":
        return False
    return first.startswith("{") or _value(second) is not None


def _next_line(file: TextIO) -> str:
    """The next line that is not empty, without the space around it."""
    while line := file.readline():
        if line.strip():
            return line.strip()
    return ""


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _lines(file: TextIO) -> Iterator[Row | Broken]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield _row(_DECODER.decode(line))
            except json.JSONDecodeError as error:
                yield Broken(f"line {number} is not valid JSON: {_reason(error)}")
            except ValueError as error:
                yield Broken(f"line {number}: {error}")
            except RecursionError:
                yield Broken(f"line {number} is nested too deeply")


# --- a list, or lists by name


@dataclass
class _Text:
    """A text that is read on as it is needed. at: how far it has been understood."""

    file: TextIO
    text: str = ""
    at: int = 0
    ended: bool = False

    def more(self) -> bool:
        """Read on; False at the end."""
        part = "" if self.ended else self.file.read(max(_CHUNK, len(self.text) - self.at))
        if part:
            self.text, self.at = self.text[self.at :] + part, 0
        self.ended = not part
        return not self.ended

    def next(self) -> str:
        """The next character that is no space, not taken yet; empty at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """Take the value that begins here. Raises ValueError or RecursionError, and takes nothing then."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - 16
                if unfinished and self.more():
                    continue
                raise
            if end == len(self.text) and self.more():  # a number may go on
                continue
            self.at = end
            return value

    def skip_value(self) -> bool:
        """Take the list or object that begins here by its brackets alone; False, and nothing is taken, where it does not end."""
        while True:
            depth = 0
            for piece in _NESTING.finditer(self.text, self.at):
                depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece.group(), 0)
                if depth == 0:
                    self.at = piece.end()
                    return True
            if not self.more():
                return False

    def skip_to(self, pattern: re.Pattern[str]) -> bool:
        """Take everything up to what the first group of `pattern` finds; nothing, and False, where it finds nothing."""
        while True:
            found = pattern.search(self.text, self.at + 1)
            if found:
                self.at = found.start(1)
                return True
            if not self.more():
                return False


def _list(file: TextIO, name: str, wanted: str) -> Iterator[Row | Broken]:
    text = _Text(file)
    try:
        match text.next():
            case "[":
                while sign := text.next():  # some files are lists one after another
                    text.at += sign == "["
                    yield from _elements(text, "]")
            case "{" if _is_one_of_several(text):
                yield from _elements(text, "")
            case "{":
                yield from _named_list(text, name, wanted)
            case _:
                text.value()
                raise UserError(f"{name} must hold a list of rows.", param="dataset")
    except json.JSONDecodeError as error:
        raise UserError(
            f"{name} is not valid JSON: {_reason(error)} in line {error.lineno}, column {error.colno}.", param="dataset"
        ) from None
    except ValueError as error:
        raise UserError(f"{name} cannot be read: {error}.", param="dataset") from None
    except RecursionError:
        raise UserError(f"{name} is nested too deeply to hold rows.", param="dataset") from None


def _is_one_of_several(text: _Text) -> bool:
    """Whether another object stands behind the first, as in files that were appended to."""
    while text.more():
        pass
    start = text.at
    try:
        text.value()
        return text.next() == "{"
    except (ValueError, RecursionError):
        return False
    finally:
        text.at = start


def _named_list(text: _Text, name: str, wanted: str) -> Iterator[Row | Broken]:
    """The rows of the one list of an object, or of the list `wanted`."""
    places: dict[str, int] = {}
    counts: dict[str, int] = {}
    others: list[str] = []
    for key in _members(text):
        if text.next() != "[":
            others.append(key)
            if text.next() != "{" or not text.skip_value():
                text.value()
            continue
        start = text.at
        text.at += 1
        kind = text.next()
        if kind in "{[" and key not in places:
            places[key] = start
            counts[key] = sum(1 for _ in _elements(text, "]"))
        else:
            text.at = start
            text.skip_value()
    if wanted and wanted not in places:
        raise UserError(f"{name} has no list called {wanted}. It has: {', '.join(places) or 'none'}.", param="dataset")
    if len(places) > 1 and not wanted:
        raise SeveralLists(name, counts)
    if not places:
        advice = "a list of rows, like [{...}, {...}]"
        raise UserError(
            f"{name} must hold {advice}; it holds {', '.join(others[:8]) or 'nothing'}. "
            "A table of pandas is written so with to_json(orient='records').",
            param="dataset",
        )
    text.at = places[wanted or next(iter(places))] + 1
    yield from _elements(text, "]")


def _members(text: _Text) -> Iterator[str]:
    """The names in the object that begins here; whoever asks takes the value before the next one. All of it has been read."""
    text.at += 1
    while (sign := text.next()) not in ("}", ""):
        if sign == ",":
            text.at += 1
            continue
        key = text.value()
        if not isinstance(key, str) or text.next() != ":":
            raise json.JSONDecodeError("a name and a colon are expected", text.text, min(text.at, len(text.text)))
        text.at += 1
        text.next()
        yield key


def _elements(text: _Text, end: str) -> Iterator[Row | Broken]:
    """Rows up to the bracket `end` (to the end of the file where it is empty).

    Behind a broken one it goes on with the next object that begins with a name which other rows have.
    """
    names: set[str] = set()
    while (sign := text.next()) != end:
        if not sign:
            yield Broken("the file ends here, without the bracket that closes the list: it was cut off")
            return
        if sign in ",]}":
            text.at += 1
            continue
        try:
            value = text.value()
        except (RecursionError, ValueError) as error:
            begin = _beginning(text, names)
            yield Broken(_why(error, text))
            spans = not isinstance(error, json.JSONDecodeError) and text.skip_value()
            if not (spans or text.skip_to(begin) or (not names and text.skip_to(_ANY_OBJECT))):
                text.at = len(text.text)
                return
        else:
            if isinstance(value, dict):
                names.update(value)
            try:
                yield _row(value)
            except ValueError as error:
                yield Broken(str(error))
    text.at += len(end)


def _beginning(text: _Text, names: set[str]) -> re.Pattern[str]:
    """What a row begins with: an object with one of the names first, or that which the broken row begins with itself."""
    if text.text[text.at] == "[":
        return re.compile(r"\]\s*,\s*(\[)")
    first = re.match(r'\{\s*("[^"\\]{1,100}")', text.text[text.at : text.at + 200])
    known = {first.group(1)} if first else set[str]()
    known.update(json.dumps(name, ensure_ascii=ascii) for name in sorted(names)[:100] for ascii in (False, True))
    choice = "|".join(map(re.escape, sorted(known)))
    return re.compile(rf"[,}}\]]\s*(\{{\s*(?:{choice})\s*:)") if choice else _ANY_OBJECT


def _why(error: Exception, text: _Text) -> str:
    """Why the value that begins here is no row."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    if text.ended and error.pos >= len(text.text.rstrip()):
        return "it is cut off"
    return f"it is not valid JSON: {_reason(error)}, at {text.text[max(text.at, error.pos - 10) : error.pos + 20]!r}"


def _row(value: Any) -> Row:
    """Raises ValueError, saying why it is none."""
    value = cleaned(value)
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return {"messages": value}
    raise ValueError(f"it is not a row of columns but {json.dumps(value, ensure_ascii=False)[:60]}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{twice[:60]} stands in it twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=lambda name: None)


def _reason(error: json.JSONDecodeError) -> str:
    """What is wrong, without the place that follows in Python's own sentence ("Invalid control character at")."""
    return error.msg.removesuffix(" at")
