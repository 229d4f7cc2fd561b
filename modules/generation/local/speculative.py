"""Speculative decoding: draft tokens for a request that runs alone; one pass verifies them all, so the text stays the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from modules.generation.local.kv_cache import Piece, rounded
from modules.generation.local.prefix_cache import common_prefix

if TYPE_CHECKING:
    from modules.generation.local.model_runner import BatchedRunner

log = logging.getLogger(__name__)
NGRAM = 3
"""A draft needs this many last tokens to have been there before."""


class Proposer(Protocol):
    """Makes drafts."""

    def propose(self, tokens: list[int]) -> list[int]:
        """What may follow `tokens`; empty for no idea."""
        ...


class ProposerGuard:
    """A proposer that is given up at its first failure: requests go on without drafts."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer: Proposer | None = proposer

    def propose(self, tokens: list[int]) -> list[int]:
        if self._proposer is None:
            return []
        try:
            return self._proposer.propose(tokens)
        except Exception:
            log.exception("speculative decoding failed and is given up")
            self._proposer = None
            return []


class PromptLookupProposer:
    """Prompt lookup: what followed the last tokens before may follow them again. Good for code, quotes and summaries."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, tokens: list[int]) -> list[int]:
        if tokens is not self._tokens:
            self._tokens, self._after, self._indexed = tokens, {}, NGRAM
        # The last n-gram itself is not indexed: it would only find itself.
        for end in range(self._indexed, len(tokens)):
            self._after[tuple(tokens[end - NGRAM : end])] = end
        self._indexed = max(NGRAM, len(tokens))
        found = self._after.get(tuple(tokens[-NGRAM:]))
        return tokens[found : found + self._count] if found is not None else []


class DraftModelProposer:
    """A small model of the same vocabulary: its likeliest tokens."""

    def __init__(self, runner: BatchedRunner, count: int) -> None:
        self._runner = runner
        self._count = count
        self._store = runner.new_store(rounded(1))
        self._known: list[int] = []

    def propose(self, tokens: list[int]) -> list[int]:
        # Its last draft may have been wrong: go on from what both have in common.
        kept = min(common_prefix(self._known, tokens), len(tokens) - 1)
        total = len(tokens) + self._count
        if total > self._store.capacity:
            self._store.resize(rounded(total * 5 // 4), kept)
        draft = [self._likeliest(tokens[kept:], kept)]
        while len(draft) < self._count:
            draft.append(self._likeliest(draft[-1:], len(tokens) + len(draft) - 1))
        self._known = [*tokens, *draft[:-1]]
        return draft

    def _likeliest(self, tokens: Sequence[int], start: int) -> int:
        piece = Piece(self._store, start, len(tokens))
        return int(self._runner.logits([piece], tokens, [len(tokens) - 1], [None])[0].argmax())
