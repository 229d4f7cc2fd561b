"""Scheduler: which requests run, what the next step computes, and which request gives way. Pure decisions; imports no torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple

from modules.errors import Unavailable
from modules.generation.local.prefill_budget import PrefillBudget
from modules.generation.local.prefix_cache import MIN_COPY, CacheFull, PrefixCache, common_prefix
from modules.generation.local.sequence import Sequence, SequenceGroup
from modules.generation.local.speculative import Proposer, ProposerGuard

AHEAD = 256
"""Room that a new sequence gets beyond its prompt; more is added when it is needed."""
WHOLE_PROMPTS = 1 << 30
"""The prefill budget of a model that computes a prompt in one pass."""


@dataclass(frozen=True, slots=True)
class ScheduledTokens:
    """What a step computes of one sequence: its next `count` tokens, and behind them the tokens of `draft`.

    The cache keeps of a draft only what the sampler then chooses (speculative decoding). With count 0 it keeps none of it:
    the draft is a candidate of contrastive search, which is computed for its hidden state.
    """

    sequence: Sequence
    count: int
    draft: Items[int] = ()


class Failure(NamedTuple):
    """A request that cannot go on, and why. It holds no memory any more."""

    group: SequenceGroup
    error: Exception


@dataclass(slots=True)
class Schedule:
    """One step. prompt_tokens: how many of its tokens are of prompts. decoding: whether there are others."""

    scheduled: list[ScheduledTokens]
    prompt_tokens: int = 0
    decoding: bool = False
    failed: list[Failure] = field(default_factory=list)

    @property
    def speculative(self) -> bool:
        return len(self.scheduled) == 1 and bool(self.scheduled[0].draft) and self.scheduled[0].count > 0


class Scheduler:
    """All requests of a model, waiting and running. For the model's own thread, save for `add`, which only appends."""

    def __init__(
        self,
        cache: PrefixCache,
        *,
        max_running: int,
        budget: PrefillBudget | None,
        proposer: Proposer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """budget: None computes each prompt in one step. proposer: drafts for a request that runs alone."""
        self.cache = cache
        self.waiting: deque[SequenceGroup] = deque()
        self.running: list[SequenceGroup] = []
        self._max_running = max_running
        self._budget = budget
        self._proposer = ProposerGuard(proposer) if proposer is not None else None
        self._clock = clock

    # --- requests come and go

    def add(self, group: SequenceGroup) -> None:
        self.waiting.append(group)

    def remove(self, group: SequenceGroup) -> None:
        """End a running request: what is computed of it is kept in the cache."""
        self._release(group)
        self.running.remove(group)

    def remove_waiting(self, groups: Iterable[SequenceGroup]) -> None:
        for group in groups:
            self.waiting.remove(group)

    def clear(self) -> list[SequenceGroup]:
        """Forget all requests and the whole cache; returns the requests."""
        groups = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        self.cache.forget_all()
        return groups

    def users_of(self, adapter: str) -> int:
        """How many running and waiting requests have that adapter."""
        return sum(group.request.adapter == adapter for group in [*self.running, *self.waiting])

    def newest(self, groups: Iterable[SequenceGroup]) -> SequenceGroup:
        """The request that gives way to the others of `groups`, all of which are running."""
        return max(groups, key=self.running.index)

    def next_due(self) -> float | None:
        """When the first of the running requests may make its next token; None where none is running."""
        return min((group.due for group in self.running), default=None)

    # --- one step

    def schedule(self) -> Schedule:
        """Admit what there is room for, and choose what to compute now. Empty where nothing can be computed yet.

        What fails or gives way is in `failed`, and is neither waiting nor running any more.
        """
        failed = self._admit() if self.waiting else []
        step = self._plan()
        step.failed = failed
        self._propose(step.scheduled)
        self._reserve(step)
        return step

    def note(self, step: Schedule, seconds: float) -> None:
        """Learn from how long a step took."""
        if self._budget is not None and not step.speculative:
            self._budget.note(seconds, step.prompt_tokens, step.decoding)

    def _admit(self) -> list[Failure]:
        failed: list[Failure] = []
        while self.waiting and len(self.running) < self._max_running:
            group = self.waiting[0]
            try:
                self._allocate(group)
            except CacheFull:
                if self.running:
                    break
                failed.append(Failure(group, _too_long(group, self.cache)))
            except Exception as error:  # noqa: BLE001 - out of memory, mostly: this request cannot start
                failed.append(Failure(group, error))
            else:
                group.admitted = self._clock()
                self.running.append(group)
            self.waiting.popleft()
        return failed

    def _allocate(self, group: SequenceGroup) -> None:
        """Memory for all sequences of a request, or for none. Raises CacheFull, and what the allocation raises."""
        try:
            for sequence in group.sequences:
                reuse = len(sequence.tokens) - 1 if group.can_reuse_prefix else 0
                donor, shared = self._prefix_donor(sequence, reuse)
                sequence.cached = self.cache.take(
                    sequence.identity, sequence.key, len(sequence.tokens) + AHEAD, reuse, sequence.truncated
                )
                if donor is not None and shared >= sequence.computed + MIN_COPY:
                    sequence.prefix_donor, sequence.shared = donor, shared
        except BaseException:
            self._release(group)
            raise
        group.reused = group.sequence.computed

    def _release(self, group: SequenceGroup) -> None:
        for sequence in group.sequences:
            if sequence.cached is not None:
                self.cache.release(sequence.cached)
                sequence.cached = None

    def _prefix_donor(self, sequence: Sequence, reuse: int) -> tuple[Sequence | None, int]:
        """The running sequence whose prompt, once it is computed, shares the longest prefix with this one, and how much."""
        others = [other for group in self.running if not group.started for other in group.sequences]
        shared = [(min(_shared(other, sequence), reuse), other) for other in others if other.key == sequence.key]
        length, donor = max(shared, key=lambda pair: pair[0], default=(0, None))
        return donor, length

    def _copy_shared_prefix(self, sequence: Sequence) -> bool:
        """Copy what the sequence's donor has computed; False while that is still to come."""
        donor, own = sequence.prefix_donor, sequence.cached
        if donor is None or own is None:
            return True
        if donor.cached is not None and donor.computed < sequence.shared:
            return False
        sequence.prefix_donor = None
        if donor.cached is not None:
            source, length = donor.cached, sequence.shared
        else:
            source, length = self.cache.best(sequence.identity, sequence.key, sequence.truncated)
        length = min(length, sequence.shared)
        if source is not None and source is not own and length > sequence.computed:
            self.cache.copy(source, own, length)
            if sequence is sequence.group.sequence:
                sequence.group.reused = length
        return True

    def _plan(self) -> Schedule:
        """Every running reply goes on by its pending tokens; prompts share what the budget leaves."""
        now = self._clock()
        scheduled: list[ScheduledTokens] = []
        prompts: list[SequenceGroup] = []
        for group in self.running:
            if group.contrast is not None and group.contrast.candidate is not None:
                scheduled.append(ScheduledTokens(group.sequence, 0, (group.contrast.candidate,)))
            elif not group.started:
                copied = [self._copy_shared_prefix(sequence) for sequence in group.sequences]
                prompts += [group] if all(copied) else []
            elif group.due <= now:
                scheduled += [ScheduledTokens(sequence, sequence.pending) for sequence in group.sequences]
        decoding = bool(scheduled)
        return Schedule(scheduled, self._plan_prompts(prompts, scheduled) if prompts else 0, decoding)

    def _plan_prompts(self, prompts: list[SequenceGroup], scheduled: list[ScheduledTokens]) -> int:
        """Add the tokens of prompts that fit beside what is `scheduled`; returns how many."""
        budget = self._budget.tokens(decoding=bool(scheduled)) if self._budget is not None else WHOLE_PROMPTS
        if not budget:
            return 0
        spent = 0
        # The shortest first, each at most its fair part: a short question need not wait for a long one.
        prompts.sort(key=lambda group: sum(sequence.pending for sequence in group.sequences))
        for index, group in enumerate(prompts):
            part = max(1, (budget - spent) // (len(prompts) - index))
            pending = [sequence.pending for sequence in group.sequences]
            if group.repeatable and self.cache.reuses_prefix and max(pending) > 1:
                # A prompt from the cache leaves its last token to compute. A fresh one does that last and alone as well: other
                # shapes round otherwise, and in 16 bits a reply that has a seed would be another one.
                pending = [count - 1 for count in pending]
            counts = _split(pending, part)
            scheduled += [ScheduledTokens(*pair) for pair in zip(group.sequences, counts, strict=True) if pair[1]]
            spent += sum(counts)
            if spent >= budget:
                break
        return spent

    def _propose(self, scheduled: list[ScheduledTokens]) -> None:
        """Add a draft where a single request is running."""
        if self._proposer is None or len(scheduled) != 1 or self.waiting:
            return
        sequence, count = scheduled[0].sequence, scheduled[0].count
        if sequence.group.can_speculate:
            draft = self._proposer.propose(sequence.tokens)[: sequence.group.left - 1]
            scheduled[0] = ScheduledTokens(sequence, count, draft)

    def _reserve(self, step: Schedule) -> None:
        """Grow the sequences; where the cache is full, the newest requests give way."""
        failures = len(step.failed)
        for item in step.scheduled:
            while (cached := item.sequence.cached) is not None:
                needed = len(cached.tokens) + item.count + len(item.draft)
                if needed <= cached.store.capacity:
                    break
                try:
                    self.cache.grow(cached, max(needed, needed * 5 // 4))
                except CacheFull:
                    full = Unavailable("The cache memory is full. Try again when fewer replies are running.")
                    step.failed.append(self._evict(self.running[-1], full))
                except Exception as error:  # noqa: BLE001 - out of memory, mostly: this request cannot go on
                    self.cache.forget_idle()
                    step.failed.append(self._evict(item.sequence.group, error))
        if len(step.failed) > failures:
            step.scheduled = [item for item in step.scheduled if item.sequence.cached is not None]

    def _evict(self, group: SequenceGroup, error: Exception) -> Failure:
        self.remove(group)
        return Failure(group, error)


def _too_long(group: SequenceGroup, cache: PrefixCache) -> Unavailable:
    needed = cache.bytes_of(len(group.prompt.tokens)) / 2**30
    return Unavailable(
        f"This prompt needs {needed:.1f} GiB of cache, and there is room for {cache.limit / 2**30:.1f}. "
        "Shorten it, or load the model with more --cache-memory."
    )


def _shared(donor: Sequence, sequence: Sequence) -> int:
    """How much of its prompt a sequence may take from another whose prompt is still being computed."""
    shared = common_prefix(donor.identity, sequence.identity)
    exact = donor.cached.exact_prefix if donor.cached is not None else None
    return shared if sequence.truncated or exact is None else min(shared, exact)


def _split(pending: Items[int], budget: int) -> list[int]:
    """How many tokens each sequence of a request computes: the last one of all together, so that their logits can be mixed.

    >>> _split([5], 3), _split([5, 2], 6), _split([3, 2], 8)
    ([3], [4, 1], [3, 2])
    """
    if sum(pending) <= budget or len(pending) == 1:
        return [min(count, budget) for count in pending]
    counts = []
    for count in pending:
        counts.append(max(0, min(count - 1, budget - sum(counts))))
    return counts if any(counts) else list(pending)
