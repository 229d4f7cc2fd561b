"""The newer form of the protocol, by OpenAI's own client."""

from __future__ import annotations

import json

import pytest

from tests.api.test_tools import TEMPLATE
from tests.fakes import EchoModel

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'


def test_a_question_is_answered(server):
    reply = server.client().responses.create(model="echo", input="你好 🌍", instructions="Be brief.", max_output_tokens=50)
    assert reply.output_text == "你好 🌍"
    assert (reply.status, reply.usage.output_tokens) == ("completed", 4)
    assert reply.usage.input_tokens_details.cached_tokens == 1
    assert [message.role for message in server.model.requests[-1].prompt] == ["system", "user"]


def test_a_conversation_goes_on_with_its_own_output(server):
    client = server.client()
    first = client.responses.create(model="echo", input="one")
    history = [
        {"role": "user", "content": "one"},
        *first.output,
        {"role": "user", "content": [{"type": "input_text", "text": "two"}]},
    ]
    assert client.responses.create(model="echo", input=history).output_text == "two"
    assert [message.content for message in server.model.requests[-1].prompt] == ["one", "one", "two"]


def test_a_reply_that_was_cut_says_so(server):
    reply = server.client().responses.create(model="echo", input="hello", max_output_tokens=2)
    assert (reply.status, reply.incomplete_details.reason, reply.output_text) == ("incomplete", "max_output_tokens", "he")


def test_a_stream_tells_every_step(server):
    with server.client().responses.stream(model="echo", input="hello") as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "hello"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text == "hello"


@pytest.mark.parametrize("stream", [False, True])
def test_functions_are_called_and_their_answers_go_back(serve, stream):
    server = serve(EchoModel(lambda request: CALL, chat_template=TEMPLATE))
    client = server.client()
    if stream:
        with client.responses.stream(model="echo", input="weather?", tools=[WEATHER]) as events:
            kinds = [event.type for event in events]
            reply = events.get_final_response()
        assert "response.function_call_arguments.delta" in kinds
        assert "response.function_call_arguments.done" in kinds
    else:
        reply = client.responses.create(model="echo", input="weather?", tools=[WEATHER])
    call = reply.output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Köln"})
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history = [
        {"role": "user", "content": "weather?"},
        call.model_dump(exclude_none=True, include={"type", "call_id", "name", "arguments"}),
        answer,
    ]
    client.responses.create(model="echo", input=history, tools=[WEATHER])
    rendered = server.model.render(server.model.requests[-1]).text
    assert '"arguments": {"city": "K' in rendered
    assert "tool:sunny" in rendered


def test_a_schema_for_the_reply(server):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    server.client().responses.create(
        model="echo", input="x", text={"format": {"type": "json_schema", "name": "thing", "schema": schema}}
    )
    assert json.loads(server.model.requests[-1].sampling.json_schema) == schema


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"n": 2}, "n"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"max_output_token": 5}, "max_output_token"),
        ({"tool_choice": {"type": "function", "name": "ghost"}}, "tool_choice"),
    ],
)
def test_what_cannot_be_done_is_named(shared, fields, param):
    reply = shared.post("/v1/responses", {"input": "x", **fields})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
