"""Tokens that are parts of a character: llama.cpp tells of the last one alone, and with it the bytes of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from modules.generation.types import Token, TokenAlternative, own_bytes

FEW, ALL = 256, 1 << 24
"""How many of the likeliest tokens are looked through: first a few, then every one."""
Likeliest = Callable[[Sequence[int], int], tuple[TokenAlternative, ...]]
"""What could follow the first tokens of a reply, best first, and at most so many."""


@dataclass(frozen=True)
class Joined:
    """`count` tokens of which only the last is told; raw: the bytes of all of them."""

    last: Token
    count: int
    raw: bytes


def told_apart(
    told: Sequence[Token | Joined], likeliest: Likeliest, bytes_of: Callable[[int], bytes], shown: int
) -> list[Token]:
    """Every token of a reply, those that were joined each by itself: what the model had in mind at its place is asked again.

    shown: how many alternatives each has. Joined ones that cannot be told apart stay one entry.
    """
    found: list[Token] = []
    for entry in told:
        found += (
            _apart(entry, [token.id for token in found], likeliest, bytes_of, shown) if isinstance(entry, Joined) else [entry]
        )
    return found


def _apart(entry: Joined, before: list[int], likeliest: Likeliest, bytes_of: Callable[[int], bytes], shown: int) -> list[Token]:
    last = bytes_of(entry.last.id)
    rest = entry.raw.removesuffix(last)
    found: list[Token] = []
    for left in range(entry.count - 1, 0, -1):
        place = [*before, *(token.id for token in found)]
        token = next((hit for most in (FEW, ALL) if (hit := _in_place(likeliest(place, most), rest, left, shown))), None)
        if token is None:
            return [replace(entry.last, raw=entry.raw)]
        found.append(token)
        rest = rest[len(own_bytes(token)) :]
    return [*found, replace(entry.last, text=_as_text(last), raw=last)] if not rest else [replace(entry.last, raw=entry.raw)]


def _in_place(possible: Sequence[TokenAlternative], rest: bytes, left: int, shown: int) -> Token | None:
    """The likeliest token that `rest` begins with, so that `left` tokens can make up all of it."""
    for token in possible:
        raw = own_bytes(token)
        if raw and rest.startswith(raw) and (raw == rest if left == 1 else len(rest) - len(raw) >= left - 1):
            return Token(token.id, token.text, token.logprob, tuple(possible[:shown]), token.raw)
    return None


def _as_text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")
