"""What other programs put into a message beside its text, as text or pictures of ours: nothing of it is dropped without a word."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from modules.chats.portable import LATEST
from modules.chats.remarks import Remark, Unreadable

Files = Mapping[str, bytes]
"""Pictures that lie beside a chat, by the beginning of their names; empty for a chat that came alone."""


class Content:
    """The parts of one message, collected in their order: `text` and `pictures` are what becomes of them.

    counts: what is only named in the text, by the code of its remark (modules.chats.remarks).
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._pieces: list[str] = []
        self._pictures: list[bytes] = []

    @property
    def text(self) -> str:
        return "\n\n".join(piece for piece in self._pieces if piece.strip()) if len(self._pieces) > 1 else "".join(self._pieces)

    @property
    def pictures(self) -> tuple[bytes, ...]:
        return tuple(self._pictures)

    def say(self, text: str) -> None:
        if text:
            self._pieces.append(text)

    def think(self, text: str) -> None:
        """Thoughts of a model; before anything else they are folded away as such."""
        if text.strip() and not self._pieces and "</think>" not in text:
            self._pieces.append(f"<think>\n{text.strip()}\n</think>")
        elif text.strip():
            self._pieces.append(fenced(text))

    def call(self, name: Any, arguments: Any) -> None:
        """A tool that the model asked for. arguments: any value, or the JSON of one."""
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):
                arguments = json.loads(arguments)
        self._labelled("tool_call", name, arguments)

    def result(self, name: Any, content: Any) -> None:
        """What a tool answered, within the message of the model that asked it."""
        if isinstance(content, list):
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            if texts and len(texts) == len(content) and all(isinstance(text, str) for text in texts):
                content = "\n".join(texts)  # pyright: ignore[reportArgumentType, reportCallIssue]
        self._labelled("tool_result", name, content)

    def _labelled(self, label: str, name: Any, value: Any) -> None:
        text = fenced(value) if isinstance(value, str) else fenced(json.dumps(value, ensure_ascii=False, indent=1), "json")
        name = " ".join(str(name or "").split())[:200]
        self._pieces.append(f"{label}: {name}\n{text}" if name else f"{label}:\n{text}")

    def picture(self, address: Any, files: Files | None = None, names: Mapping[str, Any] | None = None) -> None:
        """A picture at an address: one that holds it, one of the web, or a name in another program.

        names: what people call those that are told by a number.
        """
        address = str(address or "")
        if address.startswith("data:"):
            self.picture_data(address)
        elif re.match(r"https?://", address):
            self._pieces.append(f"![picture](<{quote(address, safe=_OF_ADDRESSES)}>)")
        elif files and (name := _name(address)) in files:
            self._pictures.append(files[name])
        else:
            self.named("pictures", (names or {}).get(_name(address)) or address)

    def picture_data(self, data: str) -> None:
        """A picture as base64, alone or in an address that holds it; what is none is told when it is kept."""
        head, comma, body = data.partition(",") if data.startswith("data:") else ("data:;base64", ",", data)
        if head.startswith("data:") and comma and not head.endswith(";base64"):
            self._pictures.append(unquote_to_bytes(body))
            return
        self._pictures.append(decoded(body))

    def named(self, code: str, name: Any) -> None:
        """What is not there, or no text, as its name. code: of the remark that counts it."""
        self._counts[code] += 1
        kind = {"pictures": "picture", "files": "file"}.get(code, "part")
        self._pieces.append(f"[{kind}: {' '.join(str(name or '?').split())[:200]}]")


_OF_ADDRESSES = "/:?#[]@!$&'()*+,;=%~-._|"


def _name(address: str) -> str:
    """The name that ChatGPT's addresses end with: file-service://file-x, sediment://file_x."""
    return address.rpartition("/")[2].partition("#")[0]


def decoded(data: str) -> bytes:
    """A picture from base64; nothing where it is none, which no picture is."""
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        return b""


def told(counts: Counter[str]) -> list[Remark]:
    """A remark for each kind of thing that was counted."""
    return [Remark(code, {"n": n}) for code, n in counts.items() if n]


def fenced(text: str, kind: str = "") -> str:
    """A block of code that holds `text`, whatever is in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{text}\n{fence}"


def words(value: Any) -> str:
    """A text, or "" where there is none. Raises Unreadable for what should be one and is not."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unreadable("text", where="content")
    return value


_WRITTEN = ("%B %d, %Y %I:%M%p", "%Y-%m-%d @%Hh %Mm %Ss %fms", "%Y-%m-%d@%Hh%Mm%Ss", "%Y-%m-%d @%Hh %Mm %Ss")


def moment(value: Any) -> float:
    """Seconds since 1970 from seconds, milliseconds, ISO 8601, or as SillyTavern writes a time; 0 for anything else."""
    if isinstance(value, str):
        return _moment_of(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    try:
        seconds = float(value)
    except OverflowError:
        return 0.0
    if not math.isfinite(seconds) or seconds <= 0:
        return 0.0
    for _ in range(3):  # milliseconds, microseconds and nanoseconds are that much later than seconds
        if seconds < LATEST:
            return seconds
        seconds /= 1000
    return 0.0


def _moment_of(text: str) -> float:
    if len(text) > 60:
        return 0.0
    with suppress(ValueError, OverflowError):
        return moment(float(text))
    with suppress(ValueError, OverflowError, OSError):
        return moment(datetime.fromisoformat(text).astimezone(UTC).timestamp())
    for form in _WRITTEN:
        with suppress(ValueError, OverflowError, OSError):
            return moment(datetime.strptime(text, form).astimezone(UTC).timestamp())
    return 0.0
