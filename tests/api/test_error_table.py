"""How a well-known web UI answered bad requests in 2026, row by row (its 500s, its empty 200s), and what this server answers.

Over the real engine, because grammars, lengths and counts are its work. The rows about the command line and the port are in
tests/test_server.py, the one about GPTQ folders in tests/loaders.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.conftest import Server, servers
from tests.fakes import EchoModel

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def tiny(tiny_llama_folder, tmp_path_factory) -> Iterator[Server]:
    with servers(tmp_path_factory.mktemp("tiny")) as start:
        server = start(EchoModel())
        (server.app.models.folder / "tiny").symlink_to(tiny_llama_folder)
        server.app.load_model("tiny")
        yield server


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Iterator[Server]:
    with servers(tmp_path_factory.mktemp("empty")) as start:
        yield start(empty=True)


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HI, **fields}


ROWS: dict[str, tuple[str, Any, int, str]] = {
    # row of the table: (address, body, status, words of the message)
    "malformed JSON": (CHAT, b'{"messages": [', 400, "not valid JSON"),
    "no messages": (CHAT, {}, 400, "'messages' is missing"),
    "empty messages": (CHAT, {"messages": []}, 400, "at least 1"),
    "max_tokens ten": (CHAT, chat(max_tokens="ten"), 400, "max_tokens"),
    "max_tokens -5": (CHAT, chat(max_tokens=-5), 400, "greater than or equal to 1"),
    "max_tokens 0": (CHAT, chat(max_tokens=0), 400, "greater than or equal to 1"),
    "message without content": (CHAT, {"messages": [{"role": "user"}]}, 400, "no content"),
    "unknown model gpt-99": (CHAT, chat(model="gpt-99"), 404, "tiny is"),
    "unknown model gpt-99, completion": (TEXT, {"prompt": "x", "model": "gpt-99"}, 404, "tiny is"),
    "unknown model gpt-99, embedding": ("/v1/embeddings", {"input": "x", "model": "gpt-99"}, 404, "tiny is"),
    "unknown role": (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, 400, "'assistant'"),
    "unknown character": (CHAT, chat(mode="chat", character="Ghost"), 404, "no character called Ghost"),
    "template syntax error": (CHAT, chat(template="{% if %}"), 400, "line 1"),
    "bad grammar": (CHAT, chat(grammar="root ::= ("), 400, "grammar"),
    "bad schema": (CHAT, chat(json_schema="{"), 400, "schema"),
    "bad token bans": (CHAT, chat(banned_tokens="1,x"), 400, "banned_tokens"),
    "banned token that is none": (CHAT, chat(banned_tokens=[-7]), 400, "banned_tokens"),
    "temperature -1": (CHAT, chat(temperature=-1), 400, "'temperature' must be greater than or equal to 0, not -1"),
    "top_k -3": (CHAT, chat(top_k=-3), 400, "top_k"),
    "repetition_penalty -1": (CHAT, chat(repetition_penalty=-1), 400, "repetition_penalty"),
    "logit_bias 101": (CHAT, chat(logit_bias={"5": 101}), 400, "between -100 and 100"),
    "logit_bias token": (CHAT, chat(logit_bias={"999999": 1}), 400, "999999"),
    "top_p 7": (CHAT, chat(top_p=7), 400, "top_p"),
    "temperature 1e9": (CHAT, chat(temperature=1e9), 400, "temperature"),
    "misspelt field": (CHAT, chat(temprature=1), 400, "no field 'temprature'"),
    "missing preset": (CHAT, chat(preset="Ghost"), 404, "Ghost"),
    "preset ../x": (CHAT, chat(preset="../x"), 400, "cannot be"),
    "instruction_template": (CHAT, chat(instruction_template="Ghost"), 404, "no chat template called Ghost"),
    "template missing": (CHAT, chat(template="Ghost"), 404, "no chat template called Ghost"),
    "template ../../x": (CHAT, chat(template="../../x"), 400, "cannot be"),
    "prompt too long": (CHAT, {"messages": [{"role": "user", "content": "word " * 2400}]}, 400, "4096"),
    "prompt too long, completion": (TEXT, {"prompt": "word " * 2400}, 400, "4096"),
    "load unknown model": ("/v1/internal/model/load", {"model": "nosuch"}, 404, "no model called nosuch"),
}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error, which has exactly OpenAI's shape."""
    body = answer.json()
    assert list(body) == ["error"] and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == ("server_error" if answer.status_code >= 500 else "invalid_request_error")
    return body["error"]


def post(server: Server, path: str, body: Any) -> httpx.Response:
    if isinstance(body, bytes):
        return httpx.post(server.url + path, content=body, headers=JSON, timeout=60)
    return server.post(path, body)


@pytest.mark.parametrize("row", ROWS)
def test_a_bad_request_is_refused_with_a_status_and_a_sentence(tiny, row):
    path, body, status, words = ROWS[row]
    bodies = [body]
    if path in (CHAT, TEXT) and isinstance(body, dict):
        bodies.append({**body, "stream": True})
    for sent in bodies:
        answer = post(tiny, path, sent)
        error = error_of(answer)
        assert answer.status_code == status, error
        assert words in error["message"]


def test_a_text_plain_body(tiny):
    answer = httpx.post(tiny.url + CHAT, content=b'{"messages": []}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert "application/json" in error_of(answer)["message"]


def test_n_3_gives_three_choices(tiny):
    answer = tiny.post(CHAT, chat(n=3, max_tokens=4)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]


def test_a_prompt_too_long_is_cut_only_where_it_is_asked_for_and_the_usage_says_so(tiny):
    turns = [{"role": role, "content": "word " * 300} for role in ("user", "assistant") * 3]
    answer = tiny.post(CHAT, {"messages": [*turns, *HI], "truncate": "oldest", "max_tokens": 4})
    usage = answer.json()["usage"]
    assert usage["prompt_tokens"] < 4096 and usage["prompt_tokens_details"]["dropped_messages"] > 0
    usage = tiny.post(TEXT, {"prompt": "word " * 2400, "truncate": "oldest", "max_tokens": 4}).json()["usage"]
    assert usage["prompt_tokens_details"]["dropped_tokens"] >= 5 * 2400 - 4096


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (TEXT, {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})])
@pytest.mark.parametrize("stream", [False, True])
def test_no_model_loaded(empty, path, body, stream):
    answer = empty.post(path, {**body, "stream": True} if stream and path != "/v1/embeddings" else body)
    assert answer.status_code == 503
    assert "--model NAME" in error_of(answer)["message"]


def test_a_foreign_host_header(tiny):
    answer = httpx.get(tiny.url + "/v1/models", headers={"Host": "evil.example"})
    assert answer.status_code == 403
    assert "evil.example" in error_of(answer)["message"]
    assert (
        "access-control-allow-origin"
        not in httpx.get(tiny.url + "/v1/models", headers={"Origin": "http://evil.example"}).headers
    )


def test_usage_counts_the_prompt_and_what_was_written(tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.app.models.folder / "tiny")
    prompt = tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_dict=False)
    usage = tiny.post(CHAT, chat(max_tokens=7, temperature=0, ban_eos=True)).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (len(prompt), 7, len(prompt) + 7)
