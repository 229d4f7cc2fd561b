"""Every refusal: its status, OpenAI's shape, the field at fault, and a sentence that helps."""

from __future__ import annotations

import json
import logging

import httpx
import openai
import pytest

from modules.errors import Unavailable
from modules.generation.types import Capabilities
from tests.api.conftest import wait_until
from tests.fakes import EchoModel

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def refusal(reply: httpx.Response) -> dict:
    """The error of `reply`, which must have exactly OpenAI's shape."""
    body = reply.json()
    assert list(body) == ["error"], body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == ("server_error" if reply.status_code >= 500 else "invalid_request_error")
    assert len(body["error"]["message"]) > 10
    assert "Traceback" not in reply.text
    return body["error"]


WRONG_FIELDS = {
    # name: (more fields of a chat request, the field at fault, a word of the sentence)
    "temperature below": ({"temperature": -1}, "temperature", "0, not -1"),
    "temperature above": ({"temperature": 1e9}, "temperature", "less than or equal to 5"),
    "top_p": ({"top_p": 7}, "top_p", "1, not 7"),
    "top_k": ({"top_k": -3}, "top_k", "not -3"),
    "repetition_penalty": ({"repetition_penalty": 0.001}, "repetition_penalty", "0.01"),
    "logit_bias range": ({"logit_bias": {"5": 101}}, "logit_bias", "between -100 and 100, not 101"),
    "logit_bias name": ({"logit_bias": {"cat": 1}}, "logit_bias", "not a token id"),
    "max_tokens nought": ({"max_tokens": 0}, "max_tokens", "1, not 0"),
    "max_tokens below": ({"max_tokens": -5}, "max_tokens", "not -5"),
    "max_tokens word": ({"max_tokens": "ten"}, "max_tokens", '"ten"'),
    "max_tokens huge": ({"max_tokens": 10**12}, "max_tokens", "1048576"),
    "max_tokens half": ({"max_tokens": 1.5}, "max_tokens", "not 1.5"),
    "n nought": ({"n": 0}, "n", "not 0"),
    "n huge": ({"n": 10_000}, "n", "128"),
    "seed": ({"seed": 2**70}, "seed", "seed"),
    "misspelt": ({"temprature": 1}, "temprature", "Did you mean 'temperature'?"),
    "misspelt 2023 name": ({"max_new_token": 5}, "max_new_token", "Did you mean 'max_new_tokens'?"),
    "functions": ({"functions": []}, "functions", "tools"),
    "no messages": ({"messages": []}, "messages", "at least 1"),
    "messages text": ({"messages": "hi"}, "messages", "a list"),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'assistant'"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0", "no content"),
    "content number": ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "not 5"),
    "part": (
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        "messages.0.content.0",
        "'refusal', 'image_url'",
    ),
    "stream word": ({"stream": "maybe"}, "stream", "boolean"),
    "stream_options alone": ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    "top_logprobs alone": ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
    "top_logprobs many": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    "many stops": ({"stop": ["x"] * 65}, "stop", "64"),
    "format": ({"response_format": {"type": "xml"}}, "response_format", "'json_schema'"),
    "two forms": ({"regex": "a", "grammar": "root ::= 'a'"}, None, "choose one"),
    "tool_choice": ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "not among the tools"),
    "tool name": ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
    "template syntax": ({"template": "{% if %}"}, "template", "line 1"),
    "template loop": ({"template": "{{ 1 / 0 }}"}, "template", "cannot render"),
    "template escape": ({"template": "{{ ''.__class__.__mro__ }}{% raise %}"}, "template", "template"),
    "template path": ({"template": "../../etc/passwd"}, "name", "cannot be"),
    "preset": ({"preset": "../x"}, "name", "cannot be"),
    "adapter": ({"adapter": "ghost"}, "adapter", "None is loaded"),
    "picture address": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
        "messages.0.content",
        "--allow-remote-images",
    ),
    "picture base64": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}}]}]},
        "messages.0.content",
        "base64",
    ),
    "picture format": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
            ]
        },
        "messages.0.content",
        "PNG",
    ),
}


@pytest.mark.parametrize("case", WRONG_FIELDS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_named(shared, case, stream):
    fields, param, word = WRONG_FIELDS[case]
    if stream and "stream" not in fields and "stream_options" not in fields:
        fields = {**fields, "stream": True}
    reply = shared.post(CHAT, {"messages": HI, **fields})
    assert reply.status_code in (400, 404)
    error = refusal(reply)
    assert error["param"] == param
    assert word in error["message"]


WRONG_COMPLETIONS = {
    "no prompt": ({}, "prompt", "missing"),
    "empty list": ({"prompt": []}, "prompt", "at least 1"),
    "mixed list": ({"prompt": [1, "a"]}, "prompt.1", "integer"),
    "suffix": ({"prompt": "x", "suffix": "y"}, "suffix", "only be continued at its end"),
    "best_of below n": ({"prompt": "x", "n": 3, "best_of": 2}, "best_of", "at least n"),
    "best_of streamed": ({"prompt": "x", "best_of": 2, "stream": True}, "best_of", "streamed"),
    "below nought": ({"prompt": "x", "max_tokens": -2}, "max_tokens", "0, not -2"),
    "bad token": ({"prompt": [2**30]}, "tokens", "not a token"),
    "too many": ({"prompt": ["x"] * 100, "n": 128}, "n", "Send fewer"),
}


@pytest.mark.parametrize("case", WRONG_COMPLETIONS)
def test_a_wrong_completion_is_named(shared, case):
    fields, param, word = WRONG_COMPLETIONS[case]
    reply = shared.post(TEXT, fields)
    error = refusal(reply)
    assert (reply.status_code, error["param"]) == (400, param)
    assert word in error["message"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "word"),
    [
        (b"{", {"Content-Type": "application/json"}, 400, "not valid JSON"),
        (b'{"messages": NaN', {"Content-Type": "application/json"}, 400, "not valid JSON"),
        (b"\xff\xfe", {"Content-Type": "application/json"}, 400, "not valid JSON"),
        (b"[" * 100_000, {"Content-Type": "application/json"}, 400, "JSON"),
        (b"[]", {"Content-Type": "application/json"}, 400, "JSON object"),
        (b"null", {"Content-Type": "application/json"}, 400, "JSON object"),
        (b'"hi"', {"Content-Type": "application/json"}, 400, "JSON object"),
        (b"", {"Content-Type": "application/json"}, 400, "JSON object"),
        (b'{"messages": []}', {"Content-Type": "text/plain"}, 415, "Content-Type: application/json"),
        (b'{"messages": []}', {}, 415, "Content-Type: application/json"),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "Content-Type: application/json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', {"Content-Type": "application/json"}, 400, "surrogate"),
        (b'{"messages": [], "temperature": Infinity}', {"Content-Type": "application/json"}, 400, "temperature"),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"a": "\\ud800"}}',
            {"Content-Type": "application/json"},
            400,
            "surrogate",
        ),
    ],
)
def test_a_body_that_cannot_be_read(shared, content, headers, status, word):
    for path in (CHAT, TEXT):
        reply = httpx.post(shared.url + path, content=content, headers=headers)
        assert reply.status_code in (status, 400)
        error = refusal(reply)
        if path == CHAT:
            assert reply.status_code == status
            assert word in error["message"]


def test_a_huge_body_is_not_read(shared):
    reply = httpx.post(
        shared.url + CHAT, content=b" " * (65 * 1024 * 1024), headers={"Content-Type": "application/json"}, timeout=60
    )
    assert reply.status_code == 413
    assert "64 MiB" in refusal(reply)["message"]


def test_an_unknown_model_is_not_answered_by_another(shared):
    with pytest.raises(openai.NotFoundError) as error:
        shared.client().chat.completions.create(model="gpt-99", messages=HI)
    assert error.value.code == "model_not_found"
    assert "echo is" in error.value.message
    with pytest.raises(openai.NotFoundError):
        shared.client().models.retrieve("gpt-99")
    assert shared.client().models.retrieve("echo").id == "echo"


@pytest.mark.parametrize("name", ["ORG_Model.Q4_1.gguf", "ORG_Model.Q4_1", "org/model.Q4_1"])
def test_a_model_is_answered_by_any_of_its_names(serve, name):
    server = serve(EchoModel(name="ORG_Model.Q4_1.gguf"))
    assert server.client().chat.completions.create(model=name, messages=HI).model == "ORG_Model.Q4_1.gguf"
    assert server.client().models.retrieve(name).id == "ORG_Model.Q4_1.gguf"
    assert server.client().embeddings.create(model=name, input="Hi").model == "ORG_Model.Q4_1.gguf"


def test_a_prompt_longer_than_the_context_is_refused_with_figures(serve):
    server = serve(EchoModel(context_length=100))
    for path, body in ((CHAT, {"messages": [{"role": "user", "content": "x" * 200}]}), (TEXT, {"prompt": "x" * 200})):
        for stream in (False, True):
            reply = server.post(path, {**body, "stream": stream})
            error = refusal(reply)
            assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
            assert "100" in error["message"]
            assert "200" in error["message"] or "2" in error["message"]


def test_without_a_model_the_server_says_how_to_get_one(serve):
    server = serve(empty=True)
    for path, body in ((CHAT, {"messages": HI}), (TEXT, {"prompt": "x"})):
        for stream in (False, True):
            reply = server.post(path, {**body, "stream": stream})
            assert reply.status_code == 503
            assert "No model is loaded" in refusal(reply)["message"]
    assert server.client().models.list().data == []


def test_a_loader_that_lacks_something_says_so(serve):
    server = serve(EchoModel(capabilities=Capabilities(samplers=frozenset({"temperature"}))))
    for path, fields, param in (
        (CHAT, {"messages": HI, "tfs": 0.9}, "tfs"),
        (CHAT, {"messages": HI, "logprobs": True}, "logprobs"),
        (CHAT, {"messages": HI, "response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"messages": HI, "regex": "a"}, "response_format"),
        (TEXT, {"prompt": "x", "logprobs": 1}, "logprobs"),
        (TEXT, {"prompt": "x", "best_of": 2}, "best_of"),
    ):
        reply = server.post(path, fields)
        assert (reply.status_code, refusal(reply)["param"]) == (400, param)
    server.post(CHAT, {"messages": HI, "tfs": 1.0}).raise_for_status()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/chat/complete", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", TEXT, 405),
    ],
)
def test_unknown_routes_are_told_apart_from_wrong_methods(shared, method, path, status):
    reply = httpx.request(method, shared.url + path)
    assert reply.status_code == status
    refusal(reply)
    if status == 405:
        assert reply.headers["allow"]


def test_a_bug_is_told_without_its_details_and_logged_with_them(serve, caplog):
    def broken(request):
        raise ZeroDivisionError("the secret detail")

    model = EchoModel()
    model.render = broken
    server = serve(model)
    reply = server.post(CHAT, {"messages": HI})
    assert reply.status_code == 500
    assert refusal(reply)["code"] == "internal_error"
    assert "secret" not in reply.text
    assert wait_until(lambda: any("secret detail" in str(record.exc_info) for record in caplog.records))


@pytest.mark.parametrize(
    "failure", [Unavailable("The memory of the GPU is full. Try a shorter prompt."), RuntimeError("secret")]
)
@pytest.mark.parametrize("n", [1, 2])
def test_a_failure_in_the_middle_of_a_stream_is_an_event_of_it(serve, caplog, failure, n):
    server = serve(EchoModel(lambda request: "abcdef", fails_after=3, failure=failure, pace=0.01))
    body = {"messages": HI, "stream": True, "n": n}
    with caplog.at_level(logging.CRITICAL, "modules.api.errors"):
        text = server.post(CHAT, body).text
        with pytest.raises(openai.APIError) as error:
            list(server.client().chat.completions.create(model="echo", messages=HI, stream=True))
    events = [event for event in text.split("\n\n") if event]
    assert "[DONE]" not in text
    assert events[-1].startswith("event: error\ndata: ")
    told = json.loads(events[-1].split("data: ", 1)[1])["error"]
    assert "secret" not in text
    assert error.value.message == told["message"]


def test_a_failure_before_the_first_event_still_has_its_status(serve):
    model = EchoModel()

    def fail(request, prompt, events):
        events.fail(Unavailable("The memory is full."))

    model._run = fail
    server = serve(model)
    for path, body in ((CHAT, {"messages": HI}), (TEXT, {"prompt": "x"})):
        for stream in (False, True):
            reply = server.post(path, {**body, "stream": stream})
            assert reply.status_code == 503
            assert "memory" in refusal(reply)["message"]


def test_keys_are_asked_for_in_openais_words(serve):
    server = serve(api_key="right")
    with pytest.raises(openai.AuthenticationError) as error:
        server.client("wrong").models.list()
    assert error.value.code == "invalid_api_key"
    assert server.client("right").models.list().data[0].id == "echo"
    reply = httpx.get(server.url + "/v1/models")
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    refusal(reply)
    assert httpx.get(server.url + "/v1/nothing").status_code == 401
