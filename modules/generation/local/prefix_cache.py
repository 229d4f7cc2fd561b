"""Prefix cache: sequences whose keys and values are in memory, those of running requests and those kept for the next ones.

Imports no torch: memory and forward passes belong to the model runner.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from modules.generation.local.kv_cache import rounded

Key = tuple[str | None, float]
"""What besides the tokens decides the keys and values: the adapter and its strength."""
MIN_COPY = 16
"""A shorter common prefix is computed again rather than copied."""
MIN_SHIFT = 64
"""A shorter run is computed again rather than shifted to its new place."""


class SequenceStore(Protocol):
    """Keys and values of one sequence of up to `capacity` tokens. How many are valid is the owner's to know."""

    capacity: int

    @property
    def bytes(self) -> int: ...

    def resize(self, capacity: int, keep: int) -> None:
        """Make room for `capacity` tokens; the first `keep` stay."""
        ...

    def truncate(self, tokens: int, keep: int) -> int:
        """Forget all but the first `keep` of `tokens`; returns how many are still there."""
        ...

    def valid_after_failure(self, tokens: int) -> int:
        """How many of the `tokens` are intact after a forward pass that failed."""
        ...


class StoreAllocator(Protocol):
    """Makes the memory of sequences. reuses_prefix: whether a sequence can go on from the beginning of another."""

    reuses_prefix: bool

    def new_store(self, capacity: int) -> Any: ...

    def bytes_of(self, capacity: int) -> int: ...


class StoreMover(Protocol):
    """Copies and shifts keys and values. supports_shift: whether keys can be given other positions."""

    @property
    def supports_shift(self) -> bool: ...

    def copy(self, source: Any, target: Any, first: int, last: int) -> None:
        """Give the store `target` the tokens first..last of `source`, at the same places."""
        ...

    def shift(self, store: Any, first: int, last: int, to: int) -> None:
        """Make what `store` has of the tokens first..last that of the places from `to` < first on. Only where `supports_shift`."""
        ...


@dataclass(eq=False)
class CachedSequence:
    """tokens: those whose keys and values are in `store`; images stand in it as negative numbers that tell them apart.

    exact_prefix: how many of them, from the beginning, are what the model computes for them; those behind were computed with
    older messages in view that were left out since. None: all.
    """

    store: Any
    key: Key
    tokens: list[int] = field(default_factory=list)
    busy: bool = True
    used: float = 0.0
    exact_prefix: int | None = None

    def truncate(self, keep: int) -> None:
        if keep < len(self.tokens):
            self._keep(self.store.truncate(len(self.tokens), keep))

    def recover(self) -> None:
        """Forget what a failed forward pass has spoilt."""
        self._keep(self.store.valid_after_failure(len(self.tokens)))

    def _keep(self, count: int) -> None:
        del self.tokens[count:]
        if self.exact_prefix is not None and self.exact_prefix >= count:
            self.exact_prefix = None

    def shared_with(self, tokens: Sequence[int], truncated: bool) -> int:
        """How many of the first tokens are of use for `tokens`; truncated: whether these lack their oldest part."""
        shared = common_prefix(self.tokens, tokens)
        return shared if truncated or self.exact_prefix is None else min(shared, self.exact_prefix)


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the beginning.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def find_run(run: Sequence[int], tokens: Sequence[int], first: int) -> int | None:
    """Where `run` begins in `tokens`, at `first` or later.

    >>> find_run([3, 4], [3, 1, 3, 4], 1), find_run([3, 5], [3, 1, 3, 4], 0)
    (2, None)
    """
    return next((at for at in range(first, len(tokens) - len(run) + 1) if tokens[at : at + len(run)] == run), None)


class CacheFull(Exception):
    """The memory for the cache does not hold another sequence of that length now."""


class PrefixCache:
    """All cached sequences of a model, within `limit` bytes, least recently used first out. For one thread."""

    def __init__(self, allocator: StoreAllocator, limit: int, max_sequences: int, mover: StoreMover | None = None) -> None:
        """max_sequences: how many may be kept at once, running ones included. mover: None where nothing can be copied."""
        self._allocator = allocator
        self._mover = mover
        self._sequences: list[CachedSequence] = []
        self.limit = limit
        self._max_sequences = max_sequences

    @property
    def bytes(self) -> int:
        return sum(sequence.store.bytes for sequence in self._sequences)

    @property
    def reuses_prefix(self) -> bool:
        return self._allocator.reuses_prefix

    @property
    def tokens(self) -> int:
        return sum(len(sequence.tokens) for sequence in self._sequences)

    def bytes_of(self, tokens: int) -> int:
        """The memory that so many tokens take."""
        return self._allocator.bytes_of(tokens)

    def best(self, tokens: list[int], key: Key, truncated: bool = False) -> tuple[CachedSequence | None, int]:
        """The cached sequence that shares the longest prefix with `tokens`, and how much of it."""
        shared = [
            (sequence.shared_with(tokens, truncated), not sequence.busy, sequence)
            for sequence in self._sequences
            if sequence.key == key
        ]
        length, _, sequence = max(shared, key=lambda found: found[:2], default=(0, False, None))
        return (sequence, length) if length else (None, 0)

    def take(self, tokens: list[int], key: Key, room: int, reuse: int, truncated: bool = False) -> CachedSequence:
        """Memory for a new sequence of up to `room` tokens, that starts with what is known of tokens[:reuse].

        An idle sequence is taken over where most of it is of use, else its prefix is copied. Raises CacheFull.
        truncated: `tokens` are a conversation without its oldest messages, so that what follows them may be known from before.
        """
        best, length = self.best(tokens, key, truncated)
        length = min(length, reuse)
        if truncated and (shifted := self._shift_together(tokens[:reuse], key, length)):
            return self._take_over(shifted, len(shifted.tokens), room)
        if best is not None and not best.busy and 2 * length >= len(best.tokens):
            return self._take_over(best, length, room)
        copied = length if best is not None and length >= MIN_COPY and self._mover is not None else 0
        try:
            self._make_room(self._allocator.bytes_of(rounded(room)), spare=best if copied else None)
        except CacheFull:
            if best is None or best.busy:
                raise
            return self._take_over(best, length, room)
        sequence = CachedSequence(self._allocator.new_store(rounded(room)), key)
        self._sequences.append(sequence)
        if best is not None and copied:
            self.copy(best, sequence, copied)
        return sequence

    def _shift_together(self, tokens: list[int], key: Key, known: int) -> CachedSequence | None:
        """Context shift: close the gap of left-out messages in an idle sequence; None where that gives no more than the `known` tokens.

        The keys are rotated to their new places. Like the values they were computed with the older messages in view, as in
        StreamingLLM (Xiao et al. 2023, arXiv:2309.17453): near what the model would compute anew, and not the same.
        """
        if self._mover is None or not self._mover.supports_shift:
            return None
        best: tuple[int, CachedSequence, int, int] | None = None
        for sequence in self._sequences:
            if sequence.busy or sequence.key != key:
                continue
            start = sequence.shared_with(tokens, truncated=True)
            first = find_run(tokens[start : start + MIN_SHIFT], sequence.tokens, start + 1)
            if first is None or len(tokens) - start < MIN_SHIFT:
                continue
            length = common_prefix(sequence.tokens[first:], tokens[start:])
            if start + length > (best[0] if best else known):
                best = start + length, sequence, start, first
        if best is None:
            return None
        end, sequence, start, first = best
        self._mover.shift(sequence.store, first, first + end - start, start)
        sequence.tokens[start:] = tokens[start:end]
        sequence.exact_prefix = start if sequence.exact_prefix is None else min(sequence.exact_prefix, start)
        return sequence

    def _take_over(self, sequence: CachedSequence, keep: int, room: int) -> CachedSequence:
        sequence.busy = True
        sequence.truncate(keep)
        try:
            self.grow(sequence, room)
        except CacheFull:
            self.release(sequence)
            raise
        return sequence

    def copy(self, source: CachedSequence, target: CachedSequence, last: int) -> None:
        """Give `target` the tokens of `source` from where it ends to `last`; it must have the same beginning."""
        assert self._mover is not None
        first = len(target.tokens)
        self._mover.copy(source.store, target.store, first, last)
        target.tokens += source.tokens[first:last]
        if source.exact_prefix is not None and source.exact_prefix < last:
            target.exact_prefix = source.exact_prefix

    def grow(self, sequence: CachedSequence, room: int) -> None:
        """See that `sequence` holds `room` tokens. Raises CacheFull."""
        if room <= sequence.store.capacity:
            return
        capacity = rounded(room)
        # While it grows, old and new memory of one layer are there together; that much is left to the reserve.
        self._make_room(self._allocator.bytes_of(capacity) - sequence.store.bytes, spare=sequence)
        try:
            sequence.store.resize(capacity, len(sequence.tokens))
        except BaseException:
            # Some layers have the new size and some none: what was known is lost.
            sequence.tokens.clear()
            self.drop(sequence)
            raise

    def release(self, sequence: CachedSequence) -> None:
        """Keep an ended sequence for whoever comes with the same beginning."""
        sequence.busy, sequence.used = False, time.monotonic()
        if not sequence.tokens or not self._allocator.reuses_prefix:
            self.drop(sequence)
        while len(self._sequences) > self._max_sequences and self._forget_oldest(None):
            pass

    def drop(self, sequence: CachedSequence) -> None:
        """Forget a sequence, running or not."""
        if sequence in self._sequences:
            self._sequences.remove(sequence)

    def forget_idle(self, adapter: str | None = None) -> bool:
        """Forget all idle sequences, or those of one adapter; says whether there were any."""
        idle = [
            sequence for sequence in self._sequences if not sequence.busy and (adapter is None or sequence.key[0] == adapter)
        ]
        for sequence in idle:
            self._sequences.remove(sequence)
        return bool(idle)

    def forget_all(self) -> None:
        self._sequences.clear()

    def _make_room(self, wanted: int, spare: CachedSequence | None) -> None:
        while self.bytes + wanted > self.limit:
            if not self._forget_oldest(spare):
                raise CacheFull

    def _forget_oldest(self, spare: CachedSequence | None) -> bool:
        idle = [sequence for sequence in self._sequences if not sequence.busy and sequence is not spare]
        if not idle:
            return False
        self._sequences.remove(min(idle, key=lambda sequence: sequence.used))
        return True
