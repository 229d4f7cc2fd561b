"""Slots: sequences whose keys and values are in memory, those of running replies and those kept for the next turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from modules.generation.local.kv_cache import rounded
from modules.generation.local.model_runner import Compute

Key = tuple[str | None, float]
"""What besides the tokens decides the keys and values: the adapter and its strength."""
WORTH_COPYING = 16
"""A shorter common beginning is computed again rather than copied."""
WORTH_MOVING = 64
"""A shorter run is computed again rather than moved to its new place."""


@dataclass(eq=False)
class Slot:
    """tokens: those whose keys and values are in `store`; pictures stand in it as negative numbers that tell them apart.

    exact: how many of them, from the beginning, are what the model computes for them; those behind were computed with older
    turns in view that were left out since. None: all.
    """

    store: Any
    key: Key
    tokens: list[int] = field(default_factory=list)
    busy: bool = True
    used: float = 0.0
    exact: int | None = None

    def cut(self, keep: int) -> None:
        if keep < len(self.tokens):
            keep = self.store.cut(len(self.tokens), keep)
            del self.tokens[keep:]
            if self.exact is not None and self.exact >= keep:
                self.exact = None

    def common(self, tokens: Sequence[int], shortened: bool) -> int:
        """How many of the first tokens are of use for `tokens`; shortened: whether these are a conversation without its oldest turns."""
        shared = common(self.tokens, tokens)
        return shared if shortened or self.exact is None else min(shared, self.exact)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the beginning.

    >>> common([1, 2, 3], [1, 2, 4, 5])
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


def place_of(run: Sequence[int], tokens: Sequence[int], first: int) -> int | None:
    """Where `run` begins in `tokens`, at `first` or later.

    >>> place_of([3, 4], [3, 1, 3, 4], 1), place_of([3, 5], [3, 1, 3, 4], 0)
    (2, None)
    """
    return next((at for at in range(first, len(tokens) - len(run) + 1) if tokens[at : at + len(run)] == run), None)


class NoRoom(Exception):
    """The memory for the cache does not hold another sequence of that length now."""


class Slots:
    """All slots of a model, within `limit` bytes. Only the model's own thread touches them."""

    def __init__(self, compute: Compute, limit: int, most: int) -> None:
        """most: how many sequences may be kept at once, running ones included."""
        self._compute = compute
        self._slots: list[Slot] = []
        self.limit = limit
        self._most = most

    @property
    def bytes(self) -> int:
        return sum(slot.store.bytes for slot in self._slots)

    @property
    def tokens(self) -> int:
        return sum(len(slot.tokens) for slot in self._slots)

    def best(self, tokens: list[int], key: Key, shortened: bool = False) -> tuple[Slot | None, int]:
        """The slot that shares the longest beginning with `tokens`, and how much of it."""
        shared = [(slot.common(tokens, shortened), not slot.busy, slot) for slot in self._slots if slot.key == key]
        length, _, slot = max(shared, key=lambda found: found[:2], default=(0, False, None))
        return (slot, length) if length else (None, 0)

    def take(self, tokens: list[int], key: Key, room: int, reuse: int, shortened: bool = False) -> Slot:
        """A slot for a new sequence with room for `room` tokens, that starts with what is known of tokens[:reuse].

        An idle slot is taken over where most of it is of use, else its beginning is copied. Raises NoRoom.
        shortened: `tokens` are a conversation without its oldest turns, so that what follows them may be known from before.
        """
        best, length = self.best(tokens, key, shortened)
        length = min(length, reuse)
        if shortened and (moved := self._move_together(tokens[:reuse], key, length)):
            return self._take_over(moved, len(moved.tokens), room)
        if best is not None and not best.busy and 2 * length >= len(best.tokens):
            return self._take_over(best, length, room)
        copied = length if best is not None and length >= WORTH_COPYING and self._compute.together else 0
        try:
            self._make_room(self._compute.bytes_of(rounded(room)), spare=best if copied else None)
        except NoRoom:
            if best is None or best.busy:
                raise
            return self._take_over(best, length, room)
        slot = Slot(self._compute.new_store(rounded(room)), key)
        self._slots.append(slot)
        if best is not None and copied:
            self.copy(best, slot, copied)
        return slot

    def _move_together(self, tokens: list[int], key: Key, known: int) -> Slot | None:
        """Close the gap that left-out turns have left in an idle slot; None where that gives no more than the `known` tokens.

        The keys are turned to their new places. Like the values they were computed with the older turns in view, as in
        StreamingLLM (Xiao et al. 2023, arXiv:2309.17453): near what the model would compute anew, and not the same.
        """
        if not self._compute.moves:
            return None
        best: tuple[int, Slot, int, int] | None = None
        for slot in self._slots:
            if slot.busy or slot.key != key:
                continue
            start = slot.common(tokens, shortened=True)
            first = place_of(tokens[start : start + WORTH_MOVING], slot.tokens, start + 1)
            if first is None or len(tokens) - start < WORTH_MOVING:
                continue
            length = common(slot.tokens[first:], tokens[start:])
            if start + length > (best[0] if best else known):
                best = start + length, slot, start, first
        if best is None:
            return None
        end, slot, start, first = best
        self._compute.move(slot.store, first, first + end - start, start)
        slot.tokens[start:] = tokens[start:end]
        slot.exact = start if slot.exact is None else min(slot.exact, start)
        return slot

    def _take_over(self, slot: Slot, keep: int, room: int) -> Slot:
        slot.busy = True
        slot.cut(keep)
        try:
            self.grow(slot, room)
        except NoRoom:
            self.release(slot)
            raise
        return slot

    def copy(self, source: Slot, target: Slot, last: int) -> None:
        """Give `target` the tokens of `source` from where it ends to `last`; it must have the same beginning."""
        first = len(target.tokens)
        target.store.copy(source.store, first, last)
        target.tokens += source.tokens[first:last]
        if source.exact is not None and source.exact < last:
            target.exact = source.exact

    def grow(self, slot: Slot, room: int) -> None:
        """See that `slot` holds `room` tokens. Raises NoRoom."""
        if room <= slot.store.capacity:
            return
        capacity = rounded(room)
        # While it grows, old and new memory of one layer are there together; that much is left to the reserve.
        self._make_room(self._compute.bytes_of(capacity) - slot.store.bytes, spare=slot)
        try:
            slot.store.resize(capacity, len(slot.tokens))
        except BaseException:
            # Some layers have the new size and some none: what was known is lost.
            slot.tokens.clear()
            self.drop(slot)
            raise

    def release(self, slot: Slot) -> None:
        """Keep an ended sequence for whoever comes with the same beginning."""
        slot.busy, slot.used = False, time.monotonic()
        if not slot.tokens or not self._compute.reuses:
            self.drop(slot)
        while len(self._slots) > self._most and self._forget_oldest(None):
            pass

    def drop(self, slot: Slot) -> None:
        """Forget a sequence, running or not."""
        if slot in self._slots:
            self._slots.remove(slot)

    def forget_idle(self, key_of: str | None = None) -> bool:
        """Forget all idle slots, or those of one adapter; says whether there were any."""
        idle = [slot for slot in self._slots if not slot.busy and (key_of is None or slot.key[0] == key_of)]
        for slot in idle:
            self._slots.remove(slot)
        return bool(idle)

    def forget_all(self) -> None:
        self._slots.clear()

    def _make_room(self, wanted: int, spare: Slot | None) -> None:
        while self.bytes + wanted > self.limit:
            if not self._forget_oldest(spare):
                raise NoRoom

    def _forget_oldest(self, spare: Slot | None) -> bool:
        idle = [slot for slot in self._slots if not slot.busy and slot is not spare]
        if not idle:
            return False
        self._slots.remove(min(idle, key=lambda slot: slot.used))
        return True
