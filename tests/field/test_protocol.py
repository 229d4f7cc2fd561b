"""Corners of the protocol that clients of vLLM and OpenAI rely on, and how a reply that was cut says so."""

from __future__ import annotations

import itertools
import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.generation.remote.dialects import extra_fields
from modules.generation.sampling import SamplingParams
from modules.generation.types import Finished, GenerationRequest, Timings, Usage
from tests.api.conftest import Server, servers, wait_until
from tests.fakes import EchoModel
from tests.serving import SCRIPTED
from tests.serving import Server as OwnProcess

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers(tmp_path_factory.mktemp("protocol")) as start:
        yield start()


def events_of(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON of each event of a stream."""
    answer = server.post(path, {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


# --- names


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", HI), ("/v1/completions", {"prompt": "hi"})])
def test_every_piece_has_the_fingerprint_of_the_model(server: Server, path: str, body: dict[str, Any]) -> None:
    whole = server.post(path, body).json()["system_fingerprint"]
    assert re.fullmatch("fp_[0-9a-f]{10}", whole)
    assert {event["system_fingerprint"] for event in events_of(server, path, body)} == {whole}


def test_the_fingerprint_changes_with_the_model_and_its_options(server: Server) -> None:
    from modules.loaders.options import LoadOptions

    app, names = server.app, set()
    before = app.last_load
    for app.last_load in (("a", LoadOptions()), ("b", LoadOptions()), ("a", LoadOptions(ctx_size=512))):
        names.add(app.fingerprint(server.model))
    app.last_load = ("a", LoadOptions(remote_api_key="secret"))
    assert len(names) == 3 and app.fingerprint(server.model) in names
    app.last_load = before


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/chat/completions", HI, 200),
        ("POST", "/v1/chat/completions", {**HI, "stream": True}, 200),
        ("POST", "/v1/chat/completions", {}, 400),
        ("GET", "/v1/models", None, 200),
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/v1/completions", None, 405),
    ],
)
def test_every_answer_has_the_name_of_its_request(
    server: Server, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    def ask(**headers: str) -> str:
        answer = httpx.request(method, server.url + path, json=body, headers=headers)
        assert answer.status_code == status
        return answer.headers["x-request-id"]

    assert re.fullmatch("req_[0-9a-f]{32}", ask()) and ask() != ask()
    assert ask(**{"X-Request-Id": "from-the-client/7"}) == "from-the-client/7"
    assert re.fullmatch("req_[0-9a-f]{32}", ask(**{"X-Request-Id": "x" * 300}))
    assert re.fullmatch("req_[0-9a-f]{32}", ask(**{"X-Request-Id": "with a space"}))


def test_an_answer_that_tells_of_a_bug_has_one_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.model, "tokenize", lambda text, *, special: [][1])
    answer = server.post("/v1/internal/encode", {"text": "x"}, headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")


# --- bodies


def test_the_tokens_of_a_responses_body_can_be_counted(server: Server) -> None:
    body = {"input": "hello", "instructions": "Be brief.", "tools": []}
    counted = server.post("/v1/responses/input_tokens", body)
    assert counted.status_code == 200
    expected = server.post("/v1/responses", body).json()["usage"]["input_tokens"]
    assert counted.json() == {"object": "response.input_tokens", "input_tokens": expected}
    longer = server.post("/v1/responses/input_tokens", {"input": "hello" * 2})
    shorter = server.post("/v1/responses/input_tokens", {"input": "hello"})
    assert longer.json()["input_tokens"] == shorter.json()["input_tokens"] + 5
    assert server.post("/v1/responses/input_tokens", {"input": ""}).status_code == 400


def test_a_prompt_that_is_too_long_is_counted_too(tiny_gguf: Path) -> None:
    from modules.api.responses import _length
    from modules.generation.types import Message
    from modules.library.models import describe
    from modules.loaders.choose import load
    from modules.loaders.options import LoadOptions

    model = load(describe(tiny_gguf), LoadOptions(cpu=True, ctx_size=256, threads=1), lambda progress: None)
    try:
        lengths = [_length(model, GenerationRequest((Message("user", "x" * size),))) for size in (100, 500, 600)]
    finally:
        model.close()
    assert lengths[2] - lengths[1] == 100 and lengths[1] - lengths[0] == 400


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_object", "schema": None}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}, SCHEMA),
    ],
)
def test_a_form_is_taken_with_and_without_schema_and_name(server: Server, form: dict[str, Any], expected: Any) -> None:
    assert server.post("/v1/chat/completions", {**HI, "response_format": form}).status_code == 200
    assert json.loads(server.model.requests[-1].sampling.json_schema) == expected
    flat = {**form.get("json_schema", {}), **{key: form[key] for key in ("type", "schema") if key in form}}
    assert server.post("/v1/responses", {"input": "hi", "text": {"format": flat}}).status_code == 200
    assert json.loads(server.model.requests[-1].sampling.json_schema) == expected


def test_any_object_is_asked_of_openai_by_its_own_word() -> None:
    wanted = extra_fields("plain", SamplingParams(json_schema='{"type": "object"}'), 4096)
    assert wanted == {"response_format": {"type": "json_object"}}


def test_texts_and_token_lists_may_be_mixed_in_one_batch(server: Server) -> None:
    prompts = ["one", [116, 119, 111], "three", [33]]
    reply = server.post("/v1/completions", {"prompt": prompts, "max_tokens": 16})
    assert reply.status_code == 200, reply.text
    assert [choice["text"] for choice in reply.json()["choices"]] == ["one", "two", "three", "!"]
    for bad, where in (([], "prompt"), (["a", []], "prompt"), (["a", 5], "prompt"), ([5, "a"], "prompt")):
        refused = server.post("/v1/completions", {"prompt": bad})
        assert refused.status_code == 400 and refused.json()["error"]["param"].startswith(where)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", {**HI, "n": 2}), ("/v1/completions", {"prompt": ["hi there", "hello"], "max_tokens": 99})],
)
def test_every_chunk_counts_where_that_is_asked_for(server: Server, path: str, body: dict[str, Any]) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events_of(server, path, {**body, "stream_options": options})
    *told, last = chunks
    made = dict.fromkeys(range(2), 0)
    for chunk in told:
        (choice,) = chunk["choices"]
        usage = chunk["usage"]
        if usage is None:  # before its prompt is counted
            assert not (choice.get("text") or choice.get("delta", {}).get("content"))
            continue
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens"] > 0 and usage["completion_tokens"] >= made[choice["index"]]
        made[choice["index"]] = usage["completion_tokens"]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == sum(made.values()) > 0
    without = events_of(server, path, {**body, "stream_options": {"include_usage": True}})
    assert [chunk["usage"] for chunk in without[:-1]] == [None] * (len(without) - 1)
    alone = events_of(server, path, {**body, "stream_options": {"continuous_usage_stats": True}})
    assert all("usage" not in chunk for chunk in alone)


# --- replies that are cut


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Server]:
    with servers(tmp_path) as start:
        yield start(EchoModel(lambda request: "abc" * 10_000, pace=0.005, context_length=100_000))


def _cut(server: Server, how: str) -> None:
    if how == "stop":
        assert server.post("/v1/internal/stop", {}).json()["stopped"] == 1
    else:
        assert server.post("/v1/internal/model/unload", {"stop_running": True}).status_code == 200


@pytest.mark.parametrize("how", ["stop", "unload"])
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", HI), ("/v1/completions", {"prompt": "x", "max_tokens": 9999})]
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_reply_that_is_cut_does_not_say_that_it_stopped(
    slow: Server, path: str, body: dict[str, Any], stream: bool, how: str
) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    cutter = threading.Thread(
        target=lambda: (wait_until(lambda: bool(slow.model.streams and slow.model.streams[0].last)), _cut(slow, how))
    )
    cutter.start()
    answer = slow.post(path, {**body, **options})
    cutter.join()
    assert answer.status_code == 200
    chunks = (
        [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")] if stream else [answer.json()]
    )
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(c.get("text") or (c.get("delta") or c.get("message") or {}).get("content") or "" for c in choices)
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["abort"]
    assert chunks[-1]["usage"]["completion_tokens"] == len(text)


def test_a_response_that_is_cut_is_incomplete(slow: Server) -> None:
    with httpx.stream("POST", slow.url + "/v1/responses", json={"input": "hi", "stream": True}, timeout=30) as answer:
        events = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))
        seen = list(itertools.islice(events, 9))
        assert seen[-1]["type"] == "response.output_text.delta"
        _cut(slow, "stop")
        end = list(events)[-1]
    assert (end["type"], end["response"]["status"]) == ("response.incomplete", "incomplete")
    assert end["response"]["incomplete_details"] == {"reason": "abort"}
    assert end["response"]["output"][0]["status"] == "incomplete"
    text = end["response"]["output"][0]["content"][0]["text"]
    assert end["response"]["usage"]["output_tokens"] == len(text) > 0


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_server_is_told_to_those_who_read(tmp_path: Path, sign: signal.Signals) -> None:
    program = ["-c", SCRIPTED.replace('"word " * 100, name="tiny", pace=0.002', '"word " * 700, name="tiny", pace=0.01')]
    with OwnProcess(["--nowebui", "--model", "tiny"], data=tmp_path, program=program) as server, server.client() as client:
        body = {**HI, "stream": True, "stream_options": {"include_usage": True}}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            first = list(itertools.islice((line for line in lines if line.startswith("data: {")), 5))
            assert server.process is not None
            server.process.send_signal(sign)
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        chunks = [json.loads(line[6:]) for line in (*first, *rest[:-1])]
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]] == [
            "abort"
        ]
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        assert chunks[-1]["usage"]["completion_tokens"] == len(text) > 0
        assert server.process.wait(timeout=30) == 0


def test_what_another_engine_cut_is_kept_as_stopped(tmp_path: Path) -> None:
    """On the page and in the counters as well."""
    from modules.chats.records import Figures
    from modules.chats.replies import Progress, Reply
    from modules.generation.stream import EventStream

    events, kept = EventStream(), list[Progress]()
    events.put(Finished("abort", Usage(3, 2), Timings(0, 0, 0)))
    events.end()
    Reply("so far", Figures(), events, lambda progress, tokens: kept.append(progress)).run()
    assert (kept[-1].state, kept[-1].figures.ending) == ("cut", "stopped")
