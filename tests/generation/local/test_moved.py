"""A conversation whose oldest turns are left out keeps what was read of the others, at their new places."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from modules.generation.local.kv_cache import Piece
from modules.generation.local.model import Limits, LocalModel
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, Message
from tests.generation.local.conftest import tokens_of
from tests.generation.local.test_rows import finished, reply_of

SYSTEM = Message("system", "Answer in one word, and never ask back. " * 3)


def conversation(turns: int) -> tuple[Message, ...]:
    said = [
        Message("user" if at % 2 == 0 else "assistant", f"{at} number {at * 7919} is said here. " * 2) for at in range(turns)
    ]
    return (SYSTEM, *said)


def asked(turns: int) -> GenerationRequest:
    sampling = SamplingParams(do_sample=False, max_tokens=12, ban_eos=True)
    return GenerationRequest(conversation(turns), sampling, logprobs=0, overflow="drop_oldest")


@pytest.fixture
def one_layer(tiny_model: Any) -> Any:
    """Makes models of one layer, whose keys and values depend on a token and its place alone: moving them is exact."""
    from transformers import LlamaForCausalLM

    config = tiny_model().config
    config.num_hidden_layers = 1

    def make() -> Any:
        torch.manual_seed(3)
        return LlamaForCausalLM(copy.deepcopy(config)).double().eval()

    return make


@pytest.fixture
def local(tiny_tokenizer: Any) -> Iterator[Any]:
    made: list[LocalModel] = []

    def make(model: Any, **limits: Any) -> LocalModel:
        made.append(LocalModel("tiny", model, tiny_tokenizer, Limits(cache_bytes=1 << 26, context_length=600, **limits)))
        return made[-1]

    yield make
    for model in made:
        model.close()


def test_only_the_new_turns_are_read_and_the_reply_is_the_right_one(local: Any, one_layer: Any) -> None:
    model, reference = local(one_layer()), one_layer()
    assert not model.render(asked(5)).dropped_messages
    list(model.stream(asked(5)))
    for turns in (7, 9, 11):
        prompt = model.render(asked(turns))
        events = list(model.stream(asked(turns)))
        ids = torch.tensor([prompt.tokens])
        made = reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None
        )
        assert tokens_of(events) == reply_of(made[0, ids.shape[1] :].tolist())
        new = len(model.tokenize("".join(message.content for message in conversation(turns)[-2:]))) + 60
        assert prompt.dropped_messages and prompt.tokens[:100] == model.render(asked(5)).tokens[:100]
        assert finished(events).usage.cached_tokens > len(prompt.tokens) - new


def test_what_was_moved_serves_no_prompt_that_is_whole(local: Any, tiny_model: Any, generate: Any) -> None:
    model = local(tiny_model())
    list(model.stream(asked(7)))
    prompt = model.render(asked(9)).tokens
    moved = finished(list(model.stream(asked(9))))
    whole = GenerationRequest(prompt, SamplingParams(do_sample=False, max_tokens=12), logprobs=0)
    first = list(model.stream(whole))
    assert tokens_of(first) == reply_of(generate(list(prompt), 12))
    assert finished(first).usage.cached_tokens < moved.usage.cached_tokens
    # Nor does its copy, nor what is copied while it is being read.
    long = replace(asked(9), sampling=SamplingParams(do_sample=False, max_tokens=60, ban_eos=True))
    with model.stream(long) as running:
        assert tokens_of(model.stream(whole)) == tokens_of(first)
        list(running)


def test_keys_are_turned_to_their_new_places(local: Any, one_layer: Any) -> None:
    compute = local(one_layer())._runner
    tokens = list(range(20, 120))

    @torch.inference_mode()
    def read(tokens: list[int]) -> Any:
        store = compute.new_store(256)
        compute.logits([Piece(store, 0, len(tokens))], tokens, [len(tokens) - 1], [None])
        return store

    store, right = read(tokens), read(tokens[:10] + tokens[40:])
    with torch.inference_mode():
        compute.shift(store, 40, 100, 10)
    assert torch.allclose(store.keys[0][:, :, :70], right.keys[0][:, :, :70], atol=1e-5)
    assert torch.allclose(store.values[0][:, :, :70], right.values[0][:, :, :70], atol=1e-9)


def test_a_text_that_grows_beyond_the_context_is_not_read_anew(local: Any, one_layer: Any) -> None:
    model = local(one_layer())
    text = "".join(f"{number} bottles of beer on the wall. " for number in range(18))
    counts = []
    for more in range(4):
        request = GenerationRequest(text + "And another one. " * 4 * more, asked(1).sampling, overflow="drop_oldest")
        counts.append(finished(list(model.stream(request))).usage)
    assert counts[3].prompt_tokens == counts[2].prompt_tokens
    assert counts[3].cached_tokens > counts[3].prompt_tokens - 90
