"""The scheduler's decisions, with stores that hold no tensors and a clock that stands still; no torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modules.errors import Unavailable
from modules.generation.local.prefill_budget import PrefillBudget
from modules.generation.local.prefix_cache import PrefixCache
from modules.generation.local.scheduler import Schedule, Scheduler
from modules.generation.local.sequence import Sequence, SequenceGroup
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest

ROOM = 512
"""Tokens that are allocated for a short prompt."""


class FakeStore:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    @property
    def bytes(self) -> int:
        return self.capacity

    def resize(self, capacity: int, keep: int) -> None:
        self.capacity = capacity

    def truncate(self, tokens: int, keep: int) -> int:
        return keep

    def valid_after_failure(self, tokens: int) -> int:
        return tokens


class FakeMemory:
    """Allocates and copies, a byte for each token."""

    reuses_prefix = True
    supports_shift = False

    def __init__(self) -> None:
        self.copied: list[tuple[int, int]] = []
        self.broken = False

    def new_store(self, capacity: int) -> FakeStore:
        if self.broken:
            raise MemoryError
        return FakeStore(capacity)

    def bytes_of(self, capacity: int) -> int:
        return capacity

    def copy(self, source: Any, target: Any, first: int, last: int) -> None:
        self.copied.append((first, last))

    def shift(self, store: Any, first: int, last: int, to: int) -> None:
        raise AssertionError("supports_shift is False")


class Draft:
    def __init__(self, *tokens: int) -> None:
        self._tokens = list(tokens)

    def propose(self, tokens: list[int]) -> list[int]:
        return self._tokens


def make_scheduler(
    *, limit: int = 1 << 20, running: int = 4, chunk: int | None = 1 << 20, **more: Any
) -> tuple[Scheduler, Any]:
    memory = FakeMemory()
    budget = PrefillBudget(chunk, chunk) if chunk is not None else None
    cache = PrefixCache(memory, limit, max_sequences=64, mover=memory)
    return Scheduler(cache, max_running=running, budget=budget, clock=lambda: 100.0, **more), memory


def group_of(*prompts: list[int], adapter: str | None = None, max_tokens: int = 100, **sampling: Any) -> SequenceGroup:
    request = GenerationRequest(tuple(prompts[0]), SamplingParams(**sampling), adapter=adapter)
    sequences = [Sequence(list(prompt), (adapter, 1.0)) for prompt in prompts]
    prompt: Any = SimpleNamespace(tokens=prompts[0], text="", dropped=0)
    nothing: Any = SimpleNamespace()
    formatter: Any = _formatter()
    return SequenceGroup(request, prompt, nothing, sequences, nothing, frozenset(), max_tokens, formatter)


def _formatter() -> Any:
    from modules.generation.local.token_formatter import TokenFormatter

    return TokenFormatter(lambda token: ("", None), lambda token: ("", None))


def compute(step: Schedule, token: int = 7) -> None:
    """What the runner and the sampler would do: note what is computed, and give complete sequences a token."""
    for item in step.scheduled:
        sequence, cached = item.sequence, item.sequence.cached
        assert cached is not None
        start = len(cached.tokens)
        cached.tokens += sequence.identity[start : start + item.count]
        if sequence.pending == 0:
            sequence.group.started = True
            sequence.append(token)


def counts(step: Schedule) -> list[int]:
    return [item.count for item in step.scheduled]


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from tests.generation import test_scheduler as tests
tests.test_requests_run_in_the_order_they_came_up_to_the_limit()
tests.test_a_request_waits_for_the_donor_of_its_prefix_and_copies_it()
tests.test_the_newest_request_is_preempted_where_the_cache_is_full()
"""


def test_the_scheduler_imports_no_torch() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, cwd=Path(__file__).parents[2])


def test_requests_run_in_the_order_they_came_up_to_the_limit() -> None:
    scheduler, _ = make_scheduler(running=2)
    groups = [group_of([index] * 5) for index in range(3)]
    for group in groups:
        scheduler.add(group)
    scheduler.schedule()
    assert scheduler.running == groups[:2] and list(scheduler.waiting) == groups[2:]
    assert groups[0].admitted == 100.0 and groups[2].admitted is None
    scheduler.remove(groups[0])
    scheduler.schedule()
    assert scheduler.running == groups[1:]


def test_a_running_reply_goes_on_and_prompts_share_the_budget_shortest_first() -> None:
    scheduler, _ = make_scheduler(chunk=64)
    replying, long, short = group_of([1] * 5), group_of([2] * 500), group_of([3] * 10)
    scheduler.add(replying)
    compute(scheduler.schedule())
    scheduler.add(long)
    scheduler.add(short)
    step = scheduler.schedule()
    assert [item.sequence.group for item in step.scheduled] == [replying, short, long]
    assert counts(step)[:2] == [1, 8] and step.decoding
    assert step.prompt_tokens == sum(counts(step)[1:]) <= 64


def test_a_model_without_a_budget_computes_whole_prompts() -> None:
    scheduler, _ = make_scheduler(chunk=None, running=1)
    scheduler.add(group_of([1] * 5000))
    assert counts(scheduler.schedule()) == [5000]


def test_a_repeatable_reply_computes_the_last_token_of_its_prompt_alone() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(group_of([1] * 30, seed=3))
    first = scheduler.schedule()
    assert counts(first) == [29]
    compute(first)
    assert counts(scheduler.schedule()) == [1]


def test_the_last_tokens_of_both_sequences_of_guidance_are_in_one_step() -> None:
    scheduler, _ = make_scheduler(chunk=32)
    scheduler.add(group_of([1] * 40, [2] * 8))
    seen = []
    for _ in range(5):
        step = scheduler.schedule()
        seen.append([item.sequence.computed + item.count == len(item.sequence.tokens) for item in step.scheduled])
        compute(step)
        if any(seen[-1]):
            break
    assert seen[-1] == [True, True] and not any(any(done) for done in seen[:-1])


def test_a_prompt_that_is_in_the_cache_computes_only_its_last_token() -> None:
    scheduler, _ = make_scheduler()
    first = group_of(list(range(50)))
    scheduler.add(first)
    compute(scheduler.schedule())
    scheduler.remove(first)
    again = group_of(list(range(50)))
    scheduler.add(again)
    assert counts(scheduler.schedule()) == [1] and again.reused == 49


def test_a_request_waits_for_the_donor_of_its_prefix_and_copies_it() -> None:
    scheduler, memory = make_scheduler(chunk=40)
    donor, other = group_of(list(range(100))), group_of([*range(90), 7, 7, 7])
    scheduler.add(donor)
    compute(scheduler.schedule())
    scheduler.add(other)
    step = scheduler.schedule()
    assert [item.sequence.group for item in step.scheduled] == [donor]
    while not donor.started:
        compute(step)
        step = scheduler.schedule()
    assert memory.copied[-1][1] == 90 and other.reused == 90
    assert [item.count for item in step.scheduled if item.sequence.group is other] == [3]


def test_a_donor_that_ends_early_leaves_what_it_has_computed() -> None:
    scheduler, _ = make_scheduler(chunk=40)
    donor, other = group_of(list(range(100))), group_of([*range(90), 7])
    scheduler.add(donor)
    compute(scheduler.schedule())
    scheduler.add(other)
    compute(scheduler.schedule())
    computed = donor.sequence.computed
    scheduler.remove(donor)
    step = scheduler.schedule()
    assert [item.sequence.group for item in step.scheduled] == [other] and other.reused == computed < 90


def test_a_request_without_room_waits_for_the_running_ones() -> None:
    scheduler, _ = make_scheduler(limit=ROOM)
    first, second = group_of([1] * 20), group_of([2] * 20)
    scheduler.add(first)
    scheduler.add(second)
    step = scheduler.schedule()
    assert scheduler.running == [first] and not step.failed
    compute(step)
    scheduler.remove(first)
    assert scheduler.schedule().failed == [] and scheduler.running == [second]


def test_a_prompt_that_never_fits_is_returned_as_failed_with_the_figures() -> None:
    scheduler, _ = make_scheduler(limit=ROOM)
    group = group_of([1] * 2000)
    scheduler.add(group)
    ((failed, error),) = scheduler.schedule().failed
    assert failed is group and isinstance(error, Unavailable) and "--cache-memory" in str(error)
    assert not scheduler.waiting and not scheduler.running


def test_memory_that_cannot_be_allocated_fails_that_request_only() -> None:
    scheduler, memory = make_scheduler()
    group = group_of([1] * 20)
    memory.broken = True
    scheduler.add(group)
    ((failed, error),) = scheduler.schedule().failed
    assert failed is group and isinstance(error, MemoryError)
    memory.broken = False
    scheduler.add(group_of([2] * 20))
    assert counts(scheduler.schedule()) == [20]


def test_the_newest_request_is_preempted_where_the_cache_is_full() -> None:
    scheduler, _ = make_scheduler(limit=2 * ROOM)
    old, new = group_of([1] * 250), group_of([2] * 250)
    for group in (old, new):
        scheduler.add(group)
    compute(scheduler.schedule())
    for group in (old, new):
        while group.sequence.pending + group.sequence.computed <= ROOM:
            group.sequence.append(7)
    step = scheduler.schedule()
    assert [failure.group for failure in step.failed] == [new] and "cache memory is full" in str(step.failed[0].error)
    assert [item.sequence.group for item in step.scheduled] == [old] == scheduler.running
    assert old.sequence.cached is not None and old.sequence.cached.store.capacity > ROOM


def test_a_slow_reply_is_not_scheduled_before_it_is_due() -> None:
    scheduler, _ = make_scheduler()
    group = group_of([1] * 5)
    scheduler.add(group)
    compute(scheduler.schedule())
    group.due = 100.5
    assert scheduler.schedule().scheduled == [] and scheduler.next_due() == 100.5
    group.due = 100.0
    assert counts(scheduler.schedule()) == [1]


@pytest.mark.parametrize(("left", "expected"), [(100, [4, 5, 6]), (3, [4, 5]), (1, [])])
def test_a_draft_is_for_a_single_running_reply_and_no_longer_than_what_is_left(left: int, expected: list[int]) -> None:
    scheduler, _ = make_scheduler(proposer=Draft(4, 5, 6))
    group = group_of([1] * 5, max_tokens=left)
    scheduler.add(group)
    prompt = scheduler.schedule()
    assert not prompt.scheduled[0].draft
    compute(prompt)
    step = scheduler.schedule()
    assert (step.scheduled[0].count, list(step.scheduled[0].draft)) == (1, expected)
    assert step.speculative == bool(expected)
    scheduler.add(group_of([2] * 5))
    assert not any(item.draft for item in scheduler.schedule().scheduled)


def test_a_candidate_of_contrastive_search_is_a_draft_behind_no_token() -> None:
    scheduler, _ = make_scheduler(proposer=Draft(4))
    group = group_of([1] * 5)
    group.contrast = contrast = SimpleNamespace(candidate=None)  # type: ignore[assignment]
    scheduler.add(group)
    first = scheduler.schedule()
    assert counts(first) == [5] and not first.scheduled[0].draft
    compute(first)
    contrast.candidate = 9
    step = scheduler.schedule()
    assert [(item.count, item.draft) for item in step.scheduled] == [(0, (9,))] and not step.speculative


def test_requests_of_an_adapter_are_counted_and_all_end_at_once() -> None:
    scheduler, _ = make_scheduler(running=1)
    groups = [group_of([1] * 5, adapter="lora"), group_of([1] * 5, adapter="lora"), group_of([1] * 5)]
    for group in groups:
        scheduler.add(group)
    scheduler.schedule()
    assert scheduler.users_of("lora") == 2
    assert scheduler.clear() == groups and scheduler.cache.bytes == 0 and not scheduler.running
