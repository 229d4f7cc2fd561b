"""Completions by OpenAI's own client: prompts of every form, echo, log-probabilities, the best of several."""

from __future__ import annotations

import pytest

from modules.generation.types import Token
from tests.fakes import EchoModel


def test_a_text_is_continued(server):
    reply = server.client().completions.create(model="echo", prompt="abc")
    assert reply.choices[0].text == "abc"
    assert reply.usage.prompt_tokens == 3
    assert reply.choices[0].finish_reason == "stop"


def test_sixteen_tokens_are_the_protocols_default(server):
    reply = server.client().completions.create(model="echo", prompt="x" * 50)
    assert reply.usage.completion_tokens == 16
    assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([97, 98], ["ab"]),
        ([[97], [98, 99]], ["a", "bc"]),
    ],
)
def test_prompts_are_texts_or_tokens_one_or_several(server, prompt, texts):
    reply = server.client().completions.create(model="echo", prompt=prompt)
    assert [choice.text for choice in reply.choices] == texts
    assert reply.usage.prompt_tokens == sum(map(len, texts))


def test_several_prompts_with_several_replies_each_are_in_order(serve):
    server = serve(EchoModel(lambda request: f"{request.prompt}{request.sampling.seed}"))
    reply = server.client().completions.create(model="echo", prompt=["a", "b"], n=2, seed=5)
    assert [choice.text for choice in reply.choices] == ["a5", "a6", "b5", "b6"]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_says_the_same_as_the_whole(server, n):
    options = {"model": "echo", "prompt": ["你好🌍", "two"], "n": n, "logprobs": 2, "echo": True}
    whole = server.client().completions.create(**options)
    texts = [""] * len(whole.choices)
    tokens, offsets = [[] for _ in texts], [[] for _ in texts]
    reasons = [""] * len(texts)
    chunks = list(server.client().completions.create(**options, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        if choice.logprobs:
            tokens[choice.index] += choice.logprobs.tokens
            offsets[choice.index] += choice.logprobs.text_offset
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]
    assert reasons == ["stop"] * len(texts)
    assert chunks[-1].usage == whole.usage


def test_echo_tells_the_prompts_probabilities_first_of_all_none(server):
    reply = server.client().completions.create(model="echo", prompt="ab", echo=True, logprobs=1, max_tokens=1)
    choice = reply.choices[0]
    assert choice.text == "aba"
    assert choice.logprobs.tokens == ["a", "b", "a"]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5]
    assert choice.logprobs.top_logprobs[1] == {"b": -0.5}
    assert choice.logprobs.text_offset == [0, 1, 2]


def test_a_mark_before_the_text_is_a_token_but_not_text(serve):
    class WithMark(EchoModel):
        def _token(self, request, letter, known):
            return Token(1, "<s>" + letter) if letter == "a" and not known else super()._token(request, letter, known)

    reply = serve(WithMark()).client().completions.create(model="echo", prompt="ab", echo=True, logprobs=0, max_tokens=1)
    assert reply.choices[0].text == "aba"
    assert reply.choices[0].logprobs.text_offset == [0, 1, 2]


def test_no_tokens_at_all_only_measures_the_prompt(server):
    reply = server.client().completions.create(model="echo", prompt="ab", echo=True, logprobs=1, max_tokens=0)
    assert reply.choices[0].text == "ab"
    assert len(reply.choices[0].logprobs.tokens) == 2
    assert reply.usage.completion_tokens == 0
    assert server.post("/v1/completions", {"prompt": "ab", "max_tokens": 0}).json()["choices"][0]["text"] == ""


def test_the_best_of_several_comes_first(serve):
    class Unequal(EchoModel):
        def _token(self, request, letter, known):
            return Token(ord(letter), letter, -abs(request.sampling.seed - 3.0))

    server = serve(Unequal(lambda request: str(request.sampling.seed)))
    reply = server.client().completions.create(model="echo", prompt="p", n=2, best_of=4, seed=1)
    assert [choice.text for choice in reply.choices] == ["3", "2"]
    assert reply.choices[0].logprobs is None
    assert reply.usage.completion_tokens == 4


def test_the_beginning_of_a_long_text_is_left_out_where_the_client_asks(serve):
    server = serve(EchoModel(context_length=50))
    reply = server.post("/v1/completions", {"prompt": "x" * 60, "truncate": "oldest"}).json()
    assert reply["usage"]["prompt_tokens_details"]["dropped_tokens"] == 60 - reply["usage"]["prompt_tokens"] > 0
