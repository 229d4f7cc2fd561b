"""The API over the real engines, with the same tiny weights in both: what a fake cannot tell."""

from __future__ import annotations

import asyncio
import gc
import json
import math

import httpx
import openai
import psutil
import pytest

from tests.api.conftest import servers, wait_until
from tests.fakes import EchoModel, loaded_in

ASK = [{"role": "user", "content": "你好 hello"}]


@pytest.fixture(scope="module", params=["transformers", "llamacpp"])
def real(request, tmp_path_factory):
    """A server with a tiny model, whose name is "tiny", in either engine."""
    folder = request.getfixturevalue("tiny_llama_folder")
    path = folder if request.param == "transformers" else request.getfixturevalue("tiny_gguf")
    with servers(tmp_path_factory.mktemp("real")) as start:
        server = start(EchoModel())
        (server.app.models.folder / ("tiny" if path.is_dir() else "tiny.gguf")).symlink_to(path)
        server.app.load_model("tiny")
        yield server


@pytest.fixture
def client(real):
    return real.client()


def test_chat_whole_and_streamed_say_the_same(client, real):
    name = client.models.list().data[0].id
    options = {"model": name, "messages": ASK, "temperature": 0, "max_tokens": 40, "extra_body": {"ban_eos": True}}
    whole = client.chat.completions.create(**options)
    assert whole.usage.completion_tokens == 40
    assert whole.choices[0].finish_reason == "length"
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert "\ufffd" not in text
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_the_same_seed_gives_the_same_reply_and_another_another(client):
    options = {"model": None, "prompt": "abc", "max_tokens": 30, "seed": 3}
    first, second = (client.completions.create(**options).choices[0].text for _ in range(2))
    several = client.completions.create(**options, n=3)
    assert first == second == several.choices[0].text
    assert len({choice.text for choice in several.choices}) == 3


def test_logprobs_are_those_of_the_tokens(client):
    reply = client.completions.create(
        model=None, prompt="abc", max_tokens=5, temperature=0, logprobs=3, extra_body={"ban_eos": True}
    )
    told = reply.choices[0].logprobs
    # llama.cpp says nothing of tokens that are part of a character.
    assert 1 <= len(told.tokens) == len(told.token_logprobs) <= 5
    for logprob, alternatives in zip(told.token_logprobs, told.top_logprobs, strict=True):
        assert logprob <= 0
        assert math.isclose(logprob, max(alternatives.values()), abs_tol=1e-4)


def test_the_likelihood_of_a_prompt_is_what_transformers_computes(real, client, tiny_llama_folder):
    if not loaded_in(real.app.manager).capabilities.prompt_logprobs:
        reply = real.post("/v1/completions", {"prompt": "abc", "echo": True, "logprobs": 1})
        assert reply.status_code == 400
        return
    import torch
    from transformers import AutoModelForCausalLM

    tokens = [72, 101, 108, 108, 111, 5, 6, 7]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32)
    with torch.inference_mode():
        scores = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = [scores[at - 1, token].item() for at, token in enumerate(tokens) if at]
    reply = client.completions.create(model=None, prompt=tokens, max_tokens=1, logprobs=1, echo=True, temperature=0)
    told = reply.choices[0].logprobs
    assert told.token_logprobs[0] is None
    assert told.token_logprobs[1 : len(tokens)] == pytest.approx(expected, abs=1e-4)
    greedy = [max(choice.values()) for choice in told.top_logprobs[1 : len(tokens)]]
    assert greedy == pytest.approx([scores[at].max().item() for at in range(len(tokens) - 1)], abs=1e-4)


def test_a_schema_is_kept(client):
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": {"enum": ["yes", "no"]}}}
    reply = client.chat.completions.create(model=None, messages=ASK, response_format=form, max_tokens=20, temperature=0)
    assert reply.choices[0].message.content.strip() in ('"yes"', '"no"')


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"grammar": "root ::= ("}, "gramma"),
        ({"regex": "("}, "re"),
        ({"json_schema": "{"}, "JSON"),
        ({"json_schema": '{"type": "thing"}'}, "schema"),
        ({"logit_bias": {"999999": 1}}, "999999"),
        ({"banned_tokens": [999999]}, "999999"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, "4096"),
        ({"adapter": "ghost"}, "ghost"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_only_the_engine_can_refuse_is_refused_with_a_status(real, fields, word, stream):
    reply = real.post("/v1/chat/completions", {"messages": ASK, "max_tokens": 5, "stream": stream, **fields})
    assert reply.status_code in (400, 404), reply.text
    assert word in reply.json()["error"]["message"]


def test_tokens_out_of_the_vocabulary_are_refused(real):
    for path, body in (("/v1/completions", {"prompt": [999_999]}), ("/v1/internal/decode", {"tokens": [999_999]})):
        reply = real.post(path, body)
        assert reply.status_code == 400, reply.text


def test_the_oldest_turns_go_where_the_client_asks(real):
    turns = [{"role": "user", "content": f"{number} " + "x" * 400} for number in range(20)]
    reply = real.post("/v1/chat/completions", {"messages": turns, "truncate": "oldest", "max_tokens": 5}).json()
    assert reply["usage"]["prompt_tokens_details"]["dropped_messages"] > 0
    text = real.post("/v1/completions", {"prompt": "x" * 5000, "truncate": "oldest", "max_tokens": 5}).json()
    assert text["usage"]["prompt_tokens_details"]["dropped_tokens"] > 0


def test_embeddings_have_unit_length(client):
    reply = client.embeddings.create(model=client.models.list().data[0].id, input=["one", "two", "one"])
    first, second, third = (entry.embedding for entry in reply.data)
    assert math.isclose(sum(x * x for x in first), 1, rel_tol=1e-3)
    assert sum(a * b for a, b in zip(first, third, strict=True)) > sum(a * b for a, b in zip(first, second, strict=True))


def test_the_next_tokens(real):
    tokens = real.post("/v1/internal/logits", {"prompt": "abc", "top": 10}).json()["tokens"]
    assert len(tokens) == 10
    assert sorted((token["logprob"] for token in tokens), reverse=True) == [token["logprob"] for token in tokens]


def test_what_the_samplers_leave(real):
    body = {"prompt": "abc", "top": 10, "use_samplers": True, "top_k": 3, "temperature": 0.5}
    answer = real.post("/v1/internal/logits", body).json()
    assert [token["id"] for token in answer["left"]] == [token["id"] for token in answer["tokens"]][:3]
    assert sum(math.exp(token["logprob"]) for token in answer["left"]) == pytest.approx(1, abs=1e-4)
    greedy = real.post("/v1/internal/logits", {**body, "temperature": 0}).json()
    assert [(token["id"], token["logprob"]) for token in greedy["left"]] == [(answer["tokens"][0]["id"], 0)]


@pytest.mark.slow
def test_a_hundred_clients_at_once_each_get_what_they_would_get_alone(real):
    """Greedy replies; every tenth client leaves after its first piece, and one reads slowly. Nobody else notices."""
    prompts = [f"number {number} " * 2 for number in range(100)]
    body = {"max_tokens": 16, "temperature": 0, "ban_eos": True}
    alone = [real.post("/v1/completions", {**body, "prompt": prompts[at]}).json()["choices"][0]["text"] for at in (5, 6)]
    gone, slow = range(9, 100, 10), 6

    async def ask(client, at):
        text, reason = "", None
        async with client.stream(
            "POST", real.url + "/v1/completions", json={**body, "prompt": prompts[at], "stream": True}
        ) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    choice = json.loads(line[6:])["choices"][0]
                    text, reason = text + choice["text"], choice["finish_reason"] or reason
                    if at in gone:
                        return None
                    await asyncio.sleep(0.05 if at == slow else 0)
        return text, reason

    async def crowd():
        async with httpx.AsyncClient(timeout=280, limits=httpx.Limits(max_connections=None)) as client:
            return await asyncio.gather(*(ask(client, at) for at in range(100)))

    def resident():
        gc.collect()
        return psutil.Process().memory_info().rss

    first = asyncio.run(crowd())
    before = resident()
    second = asyncio.run(crowd())
    for texts in (first, second):
        assert [text is None for text in texts] == [at in gone for at in range(100)]
        assert all(text and reason == "length" for text, reason in filter(None, texts))
        assert [text and text[0] for text in (texts[5], texts[slow])] == alone
    assert wait_until(lambda: not real.app.manager._streams)
    assert wait_until(lambda: loaded_in(real.app.manager).status().running == 0)
    assert resident() - before < 64 * 1024 * 1024


def test_a_request_for_another_model_is_refused(client):
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.completions.create(model="gpt-99", prompt="x")
