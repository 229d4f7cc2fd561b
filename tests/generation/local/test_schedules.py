"""Random mixtures of requests: whatever comes, goes and shares a beginning, every reply is what it would be alone."""

from __future__ import annotations

import gc
import random
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.generation.local.model import Limits, LocalModel
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, TextDelta
from tests.generation.local.conftest import generated, greedy, tokens_of
from tests.generation.local.test_adapters import make_lora
from tests.generation.local.test_rows import reply_of, some_prompt

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ROOTS = [some_prompt(length, 100 + length) for length in (3, 40, 150)]
steps = st.lists(
    st.tuples(
        st.sampled_from(range(len(ROOTS))),  # the beginning that requests share
        st.integers(0, 60),  # how much of their own they add
        st.integers(0, 3),  # which own part it is
        st.integers(1, 12),  # how long the reply is
        st.sampled_from([None, None, "lora"]),
        st.sampled_from(["read", "read", "read", "close at once", "close after one"]),
        st.booleans(),  # whether the replies so far are waited for first
    ),
    min_size=1,
    max_size=10,
)


@pytest.fixture(scope="module")
def truth(tiny_model: Any, generate: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The right tokens for a prompt with or without the adapter, remembered; and the adapter's folder."""
    folder, reference = make_lora(tiny_model, tmp_path_factory.mktemp("lora"), 9)
    known: dict[Any, list[int]] = {}

    def right(prompt: list[int], count: int, adapter: str | None) -> list[int]:
        key = (tuple(prompt), adapter)
        if key not in known:
            known[key] = generated(reference, prompt, 12) if adapter else generate(prompt, 12)
        return reply_of(known[key][:count])

    return folder, right


@pytest.fixture(scope="module")
def engines(tiny_model: Any, tiny_tokenizer: Any, truth: Any) -> Any:
    """Engines that live through all examples, so that their caches get a history: one roomy, one cramped, one guessing."""
    token = 2 * 2 * 2 * 16 * 8
    kinds = [
        Limits(max_parallel=4, cache_bytes=1 << 28, prefill_chunk=16),
        Limits(max_parallel=3, cache_bytes=token * 2048, prefill_chunk=32),
        Limits(max_parallel=2, cache_bytes=1 << 28, prompt_lookup=3),
    ]
    made = [LocalModel("tiny", tiny_model(), tiny_tokenizer, limits) for limits in kinds]
    for model in made:
        model.load_adapter("lora", str(truth[0]))
    yield made
    for model in made:
        model.close()


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 2), schedule=steps)
def test_every_reply_is_what_it_would_be_alone(engines: Any, truth: Any, which: int, schedule: Any) -> None:
    model, (_, right) = engines[which], truth
    open_streams: list[tuple[Any, list[int]]] = []
    for root, extra, own, count, adapter, reader, wait in schedule:
        prompt = ROOTS[root] + some_prompt(extra, own)
        stream = model.stream(greedy(prompt, count, adapter=adapter))
        if reader == "close at once":
            stream.close()
        elif reader == "close after one":
            next((event for event in stream if isinstance(event, TextDelta)), None)
            stream.close()
        else:
            open_streams.append((stream, right(prompt, count, adapter)))
        if wait:
            for running, expected in open_streams:
                assert tokens_of(running) == expected
            open_streams.clear()
    for running, expected in open_streams:
        assert tokens_of(running) == expected


@pytest.mark.slow
def test_a_thousand_requests_with_cancellations_leave_nothing_behind(make_local: Any) -> None:
    model = make_local(max_parallel=6, cache_bytes=1 << 22)
    dice = random.Random(0)

    def some_requests(count: int) -> None:
        streams = []
        for _ in range(count):
            prompt = ROOTS[dice.randrange(3)] + some_prompt(dice.randrange(20), dice.randrange(5))
            sampling = SamplingParams(max_tokens=dice.randint(1, 6), seed=1)
            streams.append(model.stream(GenerationRequest(tuple(prompt), sampling)))
            if dice.random() < 0.5:
                dice.choice(streams).close()
            if len(streams) > 12:
                list(streams.pop(0))
        for stream in streams:
            list(stream)

    some_requests(200)
    gc.collect()
    before = psutil.Process().memory_info().rss
    some_requests(800)
    gc.collect()
    status = model.status()
    assert (status.running, status.waiting) == (0, 0)
    assert status.cache_bytes <= 1 << 22
    assert all(not slot.busy for slot in model._loop.cache._sequences)
    assert psutil.Process().memory_info().rss - before < 16 << 20
    assert tokens_of(model.stream(greedy(ROOTS[1], 5)))
