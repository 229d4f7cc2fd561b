"""Tool calls: the format of a model's family, and a reader that tells calls from text while a reply is written."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models marks its calls.

    opening: what stands before the first call; None where the whole reply is a call or is none.
    closing: what stands after a call. special: whether the marks are special tokens, which are otherwise left out of the text.
    """

    opening: str | None
    closing: str = ""
    special: bool = False


HERMES = ToolFormat("<tool_call>", "</tool_call>")
MISTRAL = ToolFormat("[TOOL_CALLS]", special=True)
BARE = ToolFormat(None)
"""Llama 3, and every call that the schema forces: the reply is the JSON of a call."""


def tool_format(template: str | None) -> ToolFormat | None:
    """How a model with this chat template writes its calls; None where the template has no place for tools."""
    if template is None or not re.search(r"\btools\b", template):
        return None
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    return HERMES if "<tool_call>" in template else BARE


@dataclass(frozen=True)
class CallBegins:
    """The model has begun to call a tool."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next piece of a call's arguments."""

    index: int
    text: str


Piece = str | CallBegins | CallArguments


class ToolReader:
    """Tells calls from text while the reply is being written.

    names: the tools that there are; a call of anything else stays text. limit: how many calls count; the rest is left out.
    """

    def __init__(self, form: ToolFormat, names: Iterable[str], limit: int | None = None) -> None:
        self._form = form
        self._names = frozenset(names)
        self._limit = limit
        self._buffer = ""
        self._call: _Call | None = None
        self._within = False
        self._plain = False
        self.calls = 0

    @property
    def done(self) -> bool:
        """Whether all the calls that count are whole: what comes after them is left out."""
        return self._limit is not None and self.calls >= self._limit

    def feed(self, text: str) -> list[Piece]:
        """What can be told so far."""
        self._buffer += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the reply."""
        pieces: list[Piece] = []
        if self._call is not None and not self._call.started:
            self._say(pieces, self._mark() + self._call.raw)
        if not self._within:
            self._say(pieces, self._buffer)
        self._buffer, self._call = "", None
        return pieces

    def _step(self, pieces: list[Piece]) -> bool:
        """One move; whether another may follow."""
        if self._call is not None:
            return self._read_call(self._call, pieces)
        if self._within:
            return self._between_calls(pieces)
        return self._look_for_call(pieces)

    def _look_for_call(self, pieces: list[Piece]) -> bool:
        opening = self._form.opening
        if self._plain or opening is None:
            return self._look_at_beginning(pieces)
        at = self._buffer.find(opening)
        if at >= 0:
            self._say(pieces, self._buffer[:at])
            self._buffer = self._buffer[at + len(opening) :]
            self._within = True
            self._call = self._new_call()
            return True
        keep = _overlap(self._buffer, opening)
        self._say(pieces, self._buffer[: len(self._buffer) - keep])
        self._buffer = self._buffer[len(self._buffer) - keep :]
        return False

    def _look_at_beginning(self, pieces: list[Piece]) -> bool:
        """Where the whole reply is a call or none, its first letter decides."""
        start = self._buffer.lstrip()
        if self._plain or (start and start[0] != "{"):
            self._plain = True
            self._say(pieces, self._buffer)
            self._buffer = ""
        elif start:
            self._within = True
            self._call = self._new_call()
            return True
        return False

    def _read_call(self, call: _Call, pieces: list[Piece]) -> bool:
        call.read(self._buffer)
        self._buffer = ""
        counted = self._limit is None or call.index < self._limit
        if counted:
            pieces += call.take()
        if not call.done:
            return False
        self._call, self._buffer = None, call.left
        if not call.started:
            return self._was_text(pieces, call.raw)
        self.calls += counted
        return True

    def _was_text(self, pieces: list[Piece], raw: str) -> bool:
        """What looked like a call was none."""
        self._say(pieces, self._mark() + raw)
        self._within = False
        self._plain = self._form.opening is None
        return True

    def _between_calls(self, pieces: list[Piece]) -> bool:
        """After a call: the closing mark, a separator and the next call, or text again."""
        closing = self._form.closing
        rest = self._buffer.lstrip()
        if closing:
            if rest.startswith(closing):
                self._buffer, self._within = rest[len(closing) :].lstrip("\n"), False
                return bool(self._buffer)
            if closing.startswith(rest):
                return False
            self._within = False
            return True
        rest = rest.lstrip(",;] \n")
        self._buffer = rest
        if rest[:1] == "{":
            self._call = self._new_call()
            return True
        if rest:
            self._within, self._plain = False, self._form.opening is None
            return True
        return False

    def _new_call(self) -> _Call:
        return _Call(self.calls, self._names, lead=self._form.opening == MISTRAL.opening)

    def _mark(self) -> str:
        return self._form.opening or ""

    def _say(self, pieces: list[Piece], text: str) -> None:
        """Text after a call is mostly the space between two of them."""
        if text and (self.calls == 0 or text.strip()):
            pieces.append(text)


_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NEW_MISTRAL = re.compile(r"\s*([A-Za-z0-9_.-]+)(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?\s*(?=\{)")


@dataclass
class _Call:
    """One call while it is being written. In the usual order, name first, its arguments are passed on as they come."""

    index: int
    names: frozenset[str]
    lead: bool
    raw: str = ""
    started: bool = False
    done: bool = False
    left: str = ""
    _pieces: list[Piece] = field(default_factory=list)
    _scan: _Braces = field(default_factory=lambda: _Braces())
    _at: int = 0
    _inner: bool = False

    def take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def read(self, text: str) -> None:
        self.raw += text
        if self.lead:
            self.raw = self.raw.lstrip().removeprefix("[").lstrip() if not self.started else self.raw
        if not self.started:
            self._look_for_head()
        if self.started:
            self._pass_arguments_on()
        else:
            self._look_for_whole()

    def _look_for_head(self) -> None:
        head, self._inner = _HEAD.match(self.raw), True
        if head is None and self.lead:
            head, self._inner = _NEW_MISTRAL.match(self.raw), False
        if head is not None and head[1] in self.names:
            self._begin(head[1])
            self._at, self._scan = head.end(), _Braces()

    def _begin(self, name: str) -> None:
        self.started = True
        self._pieces.append(CallBegins(self.index, f"call_{uuid.uuid4().hex[:24]}", name))

    def _pass_arguments_on(self) -> None:
        if not self._scan.ended:
            end = self._scan.read(self.raw, self._at)
            if end > self._at:
                self._pieces.append(CallArguments(self.index, self.raw[self._at : end]))
            self._at = end
        if self._scan.ended:
            close = self.raw.find("}", self._at) if self._inner else self._at - 1
            if close >= 0:
                self.done, self.left = True, self.raw[close + 1 :]

    def _look_for_whole(self) -> None:
        """Any other order of the keys: wait for the end of the object, then read it at once."""
        if self.raw.strip() and self.raw.lstrip()[0] != "{" and not self.lead:
            self.done = True
            return
        if "{" not in self.raw:
            return
        self._at = self._scan.read(self.raw, max(self._at, self.raw.index("{")))
        if not self._scan.ended:
            return
        self.done, self.left, self.raw = True, self.raw[self._at :], self.raw[: self._at]
        name, arguments = _whole_call(self.raw)
        if name in self.names:
            self._begin(name)
            self._pieces.append(CallArguments(self.index, arguments))


def _whole_call(raw: str) -> tuple[str, str]:
    """(name, arguments) of a call as JSON; ("", "") where it is none."""
    try:
        call = json.loads(raw)
    except ValueError:
        return "", ""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return "", ""
    arguments = call.get("arguments", call.get("parameters", {}))
    return call["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


class _Braces:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._escaped = False
        self.ended = False

    def read(self, text: str, start: int) -> int:
        """Go on from `start`; the place after what belongs to the object so far."""
        for at in range(start, len(text)):
            letter = text[at]
            if self._in_text:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._in_text = False
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return at + 1
        return len(text)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a beginning of `mark`."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)
