"""The same seed and request give the same reply: also when the prompt comes from the cache, and in 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from modules.generation.local.model import Limits, LocalModel
from modules.generation.sampling import SamplingParams
from modules.generation.types import Finished, GenerationRequest, Message, TextDelta
from tests.tiny import write_tiny_llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    """Sizes for which products of one row and of several are computed by different kernels."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = write_tiny_llama(tmp_path_factory.mktemp("seeds") / "model", layers=4, hidden=576, heads=9, kv_heads=3)
    weights = LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, request.param))
    limits = Limits(cache_bytes=1 << 28, threads=1)
    model = LocalModel("tiny", weights, AutoTokenizer.from_pretrained(folder), limits)
    yield model
    model.close()


def told(model: LocalModel, request: GenerationRequest) -> tuple[list[tuple[int, Any]], int]:
    """(the tokens with their log-probabilities, how many of the prompt's were cached)."""
    tokens, cached = [], 0
    with model.stream(replace(request, logprobs=0)) as events:
        for event in events:
            if isinstance(event, TextDelta):
                tokens += [(token.id, token.logprob) for token in event.details]
            if isinstance(event, Finished):
                cached = event.usage.cached_tokens
    return tokens, cached


@pytest.mark.parametrize("more", [{"seed": 7, "temperature": 1.3}, {"do_sample": False}, {"seed": 3, "guidance_scale": 1.5}])
def test_a_cached_prompt_gives_the_reply_of_a_fresh_one(model: LocalModel, more: dict[str, Any]) -> None:
    sampling = SamplingParams.read({"max_tokens": 3, "ban_eos": True, **more})
    other = []
    for length in range(1, 40, 2):
        request = GenerationRequest((Message("user", f"{length} {more} {'x' * length}"),), sampling)
        first, fresh = told(model, request)
        again, cached = told(model, request)
        assert cached > fresh
        if again != first:
            other.append((length, first, again))
    assert not other, "to the last bit"


def test_replies_without_a_seed_read_their_prompt_in_one_piece(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """They need not be the same again, so that they need not pay for it."""
    sizes: list[int] = []
    compute = model._runner.logits

    def counted(pieces: Any, *rest: Any) -> Any:
        sizes.append(sum(piece.count for piece in pieces))
        return compute(pieces, *rest)

    monkeypatch.setattr(model._runner, "logits", counted)
    for seed, expected in ((-1, [12]), (5, [11, 1])):
        told(model, GenerationRequest(tuple(range(20 + seed, 32 + seed)), SamplingParams(max_tokens=1, seed=seed)))
        assert sizes == expected
        sizes.clear()


def test_a_chat_that_goes_on_does_not_change_what_was_said(model: LocalModel) -> None:
    """Regenerating an earlier reply, after the chat went on, finds its prompt in the cache."""
    sampling = SamplingParams.read({"max_tokens": 8, "ban_eos": True, "seed": 5})
    asked = (Message("user", "tell me of the sea " * 20),)
    first, _ = told(model, GenerationRequest(asked, sampling))
    told(model, GenerationRequest((*asked, Message("assistant", "It is wide."), Message("user", "And deep?")), sampling))
    again, cached = told(model, GenerationRequest(asked, sampling))
    assert cached > 100
    assert again == first
