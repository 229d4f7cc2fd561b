"""Tokens with their probabilities: as few bytes in the database, and as places in the text of their message."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from itertools import chain
from math import isnan

from modules.generation.stop_strings import REPLACEMENT
from modules.generation.types import Token, TokenAlternative

_REACH = 24
"""How many characters ahead a token is looked for after one whose text is not known."""


def pack(tokens: Sequence[Token]) -> bytes:
    """About 40 bytes for a token with eight alternatives: each id with its text once, and log-probabilities as half floats.

    One id may have several texts: engines that do not tell ids give all of them the same. Bytes that are no text follow it.
    """
    entries = list(chain.from_iterable((token, *token.alternatives) for token in tokens))
    known = {kind: number for number, kind in enumerate(dict.fromkeys(map(_kind, entries)))}
    head = json.dumps(
        {"known": list(known), "counts": [len(token.alternatives) for token in tokens]},
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode("utf-8", "replace")
    numbers = struct.pack(f"<{len(entries)}I", *(known[_kind(entry)] for entry in entries))
    values = struct.pack(f"<{len(entries)}e", *(_half(entry.logprob) for entry in entries))
    return zlib.compress(struct.pack("<I", len(head)) + head + numbers + values)


def _kind(entry: Token | TokenAlternative) -> tuple[int, str] | tuple[int, str, str]:
    return (entry.id, entry.text) if entry.raw is None else (entry.id, entry.text, entry.raw.hex())


def _half(logprob: float | None) -> float:
    return float("nan") if logprob is None else max(logprob, -60_000.0)


def unpack(data: bytes) -> tuple[Token, ...]:
    """What `pack` was given, with log-probabilities to three figures."""
    raw = zlib.decompress(data)
    (size,) = struct.unpack_from("<I", raw)
    head = json.loads(raw[4 : 4 + size])
    count = sum(head["counts"]) + len(head["counts"])
    numbers = struct.unpack_from(f"<{count}I", raw, 4 + size)
    values = struct.unpack_from(f"<{count}e", raw, 4 + size + 4 * count)
    known = [(number, text, bytes.fromhex(raw[0]) if raw else None) for number, text, *raw in head["known"]]
    entries = [
        TokenAlternative(number, text, value, raw)
        for (number, text, raw), value in zip((known[at] for at in numbers), values, strict=True)
    ]
    tokens: list[Token] = []
    at = 0
    for others in head["counts"]:
        own = entries[at]
        alternatives = tuple(entries[at + 1 : at + 1 + others])
        tokens.append(Token(own.id, own.text, None if isnan(own.logprob) else own.logprob, alternatives, own.raw))
        at += 1 + others
    return tuple(tokens)


class Places:
    """Where tokens stand in a text that may still grow. Feed it tokens in order; `ends[n]` is where token n ends.

    A token's own text is not always what it adds: a part of a character has none, some tokenizers leave the space before a
    word out of it, and marks such as the end of a turn are not shown. What stands between is given to the token before.
    """

    def __init__(self, at: int = 0) -> None:
        self._at = at
        self.begin = at
        self.ends: list[int] = []
        self._lost = False

    def feed(self, tokens: Sequence[Token], content: str, *, last: bool) -> None:
        """Place `tokens`, which follow those fed before, as far as `content` has come; last: it comes no further."""
        for token in tokens:
            end = self._end_of(token.text, content)
            waits = end is None and token.text and REPLACEMENT not in token.text
            if waits and not last and len(content) - self._at < len(token.text) + _REACH:
                return  # its text may be on its way
            self._at = self._at if end is None else end
            self.ends.append(self._at)
        if last and self.ends and self._lost:
            self.ends[-1] = len(content)

    def _end_of(self, text: str, content: str) -> int | None:
        if not text or REPLACEMENT in text:
            self._lost = self._lost or bool(text)
            return None
        reach = _REACH if self._lost else 1
        found = content.find(text, self._at, self._at + len(text) + reach)
        if found < 0 or (found > self._at and not self._lost and not content[self._at : found].isspace()):
            return None
        if found > self._at and self._lost and self.ends:
            self.ends[-1] = found
        self._lost = False
        return found + len(text)
