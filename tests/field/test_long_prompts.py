"""Prompts hundreds of times longer than the context are refused by their beginning: nobody waits for the rest to be tokenized."""

from __future__ import annotations

import pytest

from modules.errors import ContextTooLong
from modules.generation.context_overflow import far_too_long
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, Message

LONG = "some words 中文 " * 200_000


@pytest.fixture(params=["local", "llamacpp"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def tokenized(model, monkeypatch):
    """The longest text that was tokenized."""
    longest = [0]
    if hasattr(model, "_prompt_builder"):
        tokenizer = type(model._prompt_builder.tokenizer)
        ask = tokenizer.__call__

        def call(self, text, *args, **kwargs):
            longest[0] = max(longest[0], len(text))
            return ask(self, text, *args, **kwargs)

        monkeypatch.setattr(tokenizer, "__call__", call)
    else:
        ask = model._ask

        def asked(path, body):
            longest[0] = max(longest[0], len(str(body.get("content", ""))))
            return ask(path, body)

        monkeypatch.setattr(model, "_ask", asked)
    return longest


@pytest.mark.parametrize("overflow", ["refuse", "drop_oldest"])
def test_a_conversation_is_refused_by_its_beginning(model, tokenized, overflow):
    prompt = (Message("user", "hello"), Message("assistant", "hello"), Message("user", LONG))
    with pytest.raises(ContextTooLong, match="many times longer than the model's context") as told:
        model.render(GenerationRequest(prompt, SamplingParams(max_tokens=5), overflow=overflow))
    assert told.value.tokens is None and tokenized[0] < len(LONG) / 10


def test_a_text_is_refused_by_its_beginning(model, tokenized):
    with pytest.raises(ContextTooLong, match="many times longer"):
        model.render(GenerationRequest(LONG, SamplingParams(max_tokens=5)))
    assert tokenized[0] < len(LONG) / 10


def test_old_turns_that_are_far_too_long_are_left_out(model, tokenized):
    prompt = (Message("user", LONG), Message("assistant", "hello"), Message("user", "hello"))
    kept = model.render(GenerationRequest(prompt, SamplingParams(max_tokens=5), overflow="drop_oldest"))
    assert kept.dropped_messages == 2 and tokenized[0] < len(LONG) / 10


def test_a_text_of_few_tokens_is_read_as_a_whole():
    assert not far_too_long("a" * 10**6, lambda text: [0] * (len(text) // 100_000), 4096)
    assert far_too_long("a" * 10**6, lambda text: [0] * len(text), 4096)
    assert not far_too_long("a" * 5000, lambda text: [0] * len(text), 256), "it is told with its length"
