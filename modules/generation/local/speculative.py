"""Guesses of the next tokens, for a reply that runs alone: the model checks them all in one pass, so the text stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from modules.generation.local.kv_cache import Piece, rounded
from modules.generation.local.model_runner import Together
from modules.generation.local.prefix_cache import common

RUN = 3
"""A guess needs this many last tokens to have been there before."""


class Guesser(Protocol):
    def next(self, tokens: list[int]) -> list[int]:
        """What may follow `tokens`; empty for no idea."""
        ...


class Lookup:
    """Guesses that what followed the last tokens before follows them again: good for code, quotes and summaries."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def next(self, tokens: list[int]) -> list[int]:
        if tokens is not self._tokens:
            self._tokens, self._after, self._indexed = tokens, {}, RUN
        # The last run itself is not indexed: it would only find itself.
        for end in range(self._indexed, len(tokens)):
            self._after[tuple(tokens[end - RUN : end])] = end
        self._indexed = max(RUN, len(tokens))
        found = self._after.get(tuple(tokens[-RUN:]))
        return tokens[found : found + self._count] if found is not None else []


class Draft:
    """Guesses what a small model of the same vocabulary would say."""

    def __init__(self, compute: Together, count: int) -> None:
        self._compute = compute
        self._count = count
        self._store = compute.new_store(rounded(1))
        self._known: list[int] = []

    def next(self, tokens: list[int]) -> list[int]:
        # Its last guesses may have been wrong: go on from what both have in common.
        kept = min(common(self._known, tokens), len(tokens) - 1)
        total = len(tokens) + self._count
        if total > self._store.capacity:
            self._store.resize(rounded(total * 5 // 4), kept)
        guesses = [self._likeliest(tokens[kept:], kept)]
        while len(guesses) < self._count:
            guesses.append(self._likeliest(guesses[-1:], len(tokens) + len(guesses) - 1))
        self._known = [*tokens, *guesses[:-1]]
        return guesses

    def _likeliest(self, tokens: Sequence[int], start: int) -> int:
        piece = Piece(self._store, start, len(tokens))
        return int(self._compute.logits([piece], tokens, [len(tokens) - 1], [None])[0].argmax())
