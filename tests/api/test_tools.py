"""Calls of tools: every family's way of writing them, whole and letter by letter."""

from __future__ import annotations

import json

import pytest

from modules.api.chat_request import ChatCompletionRequest
from modules.api.tools import forced_schema
from modules.generation.tool_calls import BARE, HERMES, MISTRAL, CallArguments, CallBegins, ToolReader, tool_format
from tests.fakes import EchoModel

NAMES = ["weather", "time"]
ONE = '{"name": "weather", "arguments": {"city": "Köln", "note": "a \\"}{\\" b"}}'
ONE_ARGUMENTS = {"city": "Köln", "note": 'a "}{" b'}
TWO = '{"name": "time", "arguments": {}}'


def read(form, text, step, **options):
    """(text, [(name, arguments)]) that the reader makes of `text` fed in pieces of `step` letters."""
    reader = ToolReader(form, NAMES, **options)
    pieces = [piece for at in range(0, len(text), step) for piece in reader.feed(text[at : at + step])] + reader.finish()
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    calls = [
        (piece.name, "".join(p.text for p in pieces if isinstance(p, CallArguments) and p.index == piece.index))
        for piece in pieces
        if isinstance(piece, CallBegins)
    ]
    assert [piece.index for piece in pieces if isinstance(piece, CallBegins)] == list(range(len(calls)))
    return said, [(name, json.loads(arguments)) for name, arguments in calls]


CASES = {
    "hermes": (HERMES, f"<tool_call>\n{ONE}\n</tool_call>", "", [("weather", ONE_ARGUMENTS)]),
    "hermes after words": (HERMES, f"Let me look.<tool_call>{ONE}</tool_call>", "Let me look.", [("weather", ONE_ARGUMENTS)]),
    "hermes twice": (
        HERMES,
        f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{TWO}\n</tool_call>",
        "",
        [("weather", ONE_ARGUMENTS), ("time", {})],
    ),
    "hermes, other order": (
        HERMES,
        '<tool_call>{"arguments": {"a": [1, {"b": 2}]}, "name": "time"}</tool_call>',
        "",
        [("time", {"a": [1, {"b": 2}]})],
    ),
    "hermes, then words": (HERMES, f"<tool_call>{TWO}</tool_call>\nDone.", "Done.", [("time", {})]),
    "hermes, unknown tool": (
        HERMES,
        '<tool_call>{"name": "x", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "x", "arguments": {}}</tool_call>',
        [],
    ),
    "hermes, no JSON": (HERMES, "<tool_call>oh</tool_call> no", "<tool_call>oh</tool_call> no", []),
    "hermes, plain words": (HERMES, "a < b, <tool is not one", "a < b, <tool is not one", []),
    "llama": (BARE, '{"name": "time", "parameters": {"zone": "CET"}}', "", [("time", {"zone": "CET"})]),
    "llama twice": (BARE, f"{TWO}; {TWO}", "", [("time", {}), ("time", {})]),
    "llama, other JSON": (BARE, '{"answer": 42}', '{"answer": 42}', []),
    "llama, words": (BARE, "Hello {you}", "Hello {you}", []),
    "mistral": (MISTRAL, f"[TOOL_CALLS][{ONE}, {TWO}]", "", [("weather", ONE_ARGUMENTS), ("time", {})]),
    "mistral with a space": (MISTRAL, f"[TOOL_CALLS] [{TWO}]", "", [("time", {})]),
    "newer mistral": (MISTRAL, '[TOOL_CALLS]time[ARGS]{"zone": "CET"}', "", [("time", {"zone": "CET"})]),
    "newest mistral": (
        MISTRAL,
        'So: [TOOL_CALLS]time{"zone": "CET"}[TOOL_CALLS]weather{}',
        "So: ",
        [("time", {"zone": "CET"}), ("weather", {})],
    ),
}


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("case", CASES)
def test_calls_are_told_from_text(case, step):
    form, text, said, calls = CASES[case]
    assert read(form, text, step) == (said, calls)


def test_only_the_first_call_counts_where_one_is_wanted():
    assert read(HERMES, f"<tool_call>{TWO}</tool_call><tool_call>{ONE}</tool_call>", 5, limit=1) == ("", [("time", {})])


def test_arguments_are_passed_on_while_they_are_written():
    reader = ToolReader(HERMES, NAMES)
    assert isinstance(reader.feed('<tool_call>{"name": "time", "arguments": {')[0], CallBegins)
    assert reader.feed('"zone": "C') == [CallArguments(0, '"zone": "C')]


def test_a_reply_that_ends_within_a_call_loses_nothing():
    reader = ToolReader(HERMES, NAMES)
    pieces = [*reader.feed('Well <tool_call>{"na'), *reader.finish()]
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == 'Well <tool_call>{"na'


def test_the_template_tells_the_family():
    assert tool_format("{{ messages }}") is None
    assert tool_format("{% if tools %}<tool_call>{% endif %}") == HERMES
    assert tool_format("{% if tools %}[TOOL_CALLS]{% endif %}") == MISTRAL
    assert tool_format("{{ tools }} <|python_tag|>") == BARE


TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "$defs": {"t": {}}, "required": []}}},
    {"type": "function", "function": {"name": "time", "description": "Tell the time"}},
]
TEMPLATE = "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}\n{% endfor %}"
ASK = [{"role": "user", "content": "how is the weather?"}]


def test_a_forced_call_is_a_schema_with_its_definitions_at_the_root():
    body = ChatCompletionRequest.model_validate({"messages": ASK, "tools": TOOLS, "tool_choice": "required"})
    schema = forced_schema(body)
    assert schema["$defs"] == {"t": {}}
    assert [call["properties"]["name"]["const"] for call in schema["anyOf"]] == ["weather", "time"]
    assert "$defs" not in schema["anyOf"][0]["properties"]["arguments"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_client_gets_parsed_calls(serve, stream):
    model = EchoModel(lambda request: f"<tool_call>\n{ONE}\n</tool_call>", chat_template=TEMPLATE)
    reply = serve(model).client().chat.completions.create(model="echo", messages=ASK, tools=TOOLS, stream=stream)
    if stream:
        name, arguments, reason, content = "", "", None, ""
        for chunk in reply:
            choice = chunk.choices[0]
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                name += call.function.name or ""
                arguments += call.function.arguments
        assert content == ""
    else:
        choice = reply.choices[0]
        assert choice.message.content is None
        call = choice.message.tool_calls[0]
        assert call.id.startswith("call_")
        name, arguments, reason = call.function.name, call.function.arguments, choice.finish_reason
    assert (name, json.loads(arguments), reason) == ("weather", ONE_ARGUMENTS, "tool_calls")


def test_the_template_sees_tools_and_earlier_calls_as_objects(serve):
    model = EchoModel(chat_template=TEMPLATE)
    call = {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "CET"}'}}
    history = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    serve(model).client().chat.completions.create(model="echo", messages=history, tools=TOOLS)
    text = model.render(model.requests[-1]).text
    assert '"arguments": {"zone": "CET"}' in text
    assert '"description": "Tell the time"' in text
    assert "tool:noon" in text


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}])
def test_a_call_can_be_forced(serve, choice):
    model = EchoModel(lambda request: TWO, chat_template=TEMPLATE)
    reply = serve(model).client().chat.completions.create(model="echo", messages=ASK, tools=TOOLS, tool_choice=choice)
    assert reply.choices[0].message.tool_calls[0].function.name == "time"
    assert '"const": "time"' in model.requests[-1].sampling.json_schema


def test_no_call_where_none_is_wanted(serve):
    model = EchoModel(lambda request: "plain", chat_template=TEMPLATE)
    reply = serve(model).client().chat.completions.create(model="echo", messages=ASK, tools=TOOLS, tool_choice="none")
    assert reply.choices[0].message.content == "plain"
    assert "Tell the time" not in model.render(model.requests[-1]).text


def test_a_template_without_a_place_for_tools_is_said(server):
    reply = server.post("/v1/chat/completions", {"messages": ASK, "tools": TOOLS})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "tools"
