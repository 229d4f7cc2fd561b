"""Clients as they are: the bodies they send get an answer, what has no effect is told, and a slip of the pen is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from modules.api import foreign
from modules.api.chat_request import OLDER, ChatCompletionRequest
from modules.api.common import CommonRequest, SamplingBody
from modules.api.legacy import routes as legacy
from modules.api.tolerance import Tolerant
from modules.generation.sampling import DEFAULT_ORDER, SamplingParams
from tests.api.conftest import Server, servers
from tests.conftest import ROOT
from tests.fakes import EchoModel
from tests.tiny import write_tiny_llama
from tests.tiny_gguf import write_gguf

INPUTS = Path(__file__).parent / "inputs"
GOLDEN = sorted((INPUTS / "clients").glob("*.json"))
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI},
    TEXT: {"prompt": "hi"},
    RESPONSES: {"input": "hi"},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/internal/token-count": {"text": "hi"},
    "/v1/internal/logits": {"prompt": "hi"},
    "/v1/internal/chat-prompt": {"messages": HI},
}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }} <tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"
    "{% if not (continue_final_message and loop.last) %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[..., Server]]:
    with servers(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Server]:
    with servers(tmp_path_factory.mktemp("shared")) as start:
        yield start()


# --- whole bodies, as they were recorded


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model whose template knows tools."""
    folder = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", layers=1, hidden=32)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["transformers", "llama.cpp"])
def tiny(request, folder, tmp_path_factory) -> Iterator[Server]:
    """The same model with each loader, called tiny. Replies without a bound of their own are short."""
    with servers(tmp_path_factory.mktemp("server")) as start:
        server = start(EchoModel())
        if request.param == "transformers":
            (server.app.models.folder / "tiny").symlink_to(folder)
            server.app.load_model("tiny")
        else:
            write_gguf(folder, server.app.models.folder / "tiny.gguf")
            server.app.load_model("tiny.gguf")
        server.app.sampling = SamplingParams(max_tokens=8)
        yield server


@pytest.fixture(scope="module")
def scripted(tmp_path_factory) -> Iterator[Server]:
    """A model of that name without weights, for the same in less time."""
    with servers(tmp_path_factory.mktemp("scripted")) as start:
        yield start(EchoModel(name="tiny", chat_template=TEMPLATE))


def check(server: Server, file: Path) -> None:
    """Whether a body that was recorded gets a whole answer."""
    wanted = json.loads(file.read_text(encoding="utf-8"))
    if wanted["path"].startswith("/api/v1/"):
        answer = post_2023(server, wanted["path"].removeprefix("/api/v1/"), wanted["body"])
    else:
        answer = server.post(wanted["path"], wanted["body"])
    assert answer.status_code == 200, answer.text
    assert "event: error" not in answer.text
    if wanted["body"].get("stream"):
        assert answer.text.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_a_recorded_body_is_understood(scripted, file):
    check(scripted, file)


@pytest.mark.slow
@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_a_recorded_body_gets_an_answer(tiny, file):
    check(tiny, file)


def test_every_client_of_the_list_is_among_them():
    clients = ["ai-sdk", "dspy", "fastchat", "instructor", "litellm", "llama-index", "open-webui", "openai", "pydantic-ai"]
    for client in (*clients, "sillytavern", "smolagents"):
        assert any(file.name.startswith(client) for file in GOLDEN), client


# --- what nobody here knows


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Iterator[Server]:
    with servers(tmp_path_factory.mktemp("strict")) as start:
        yield start(strict_api=True)


@pytest.mark.parametrize("path", BODIES)
def test_an_unknown_field_has_no_effect_and_is_named(shared, strict, path):
    body = {**BODIES[path], "qqq": 5, "api_server": "x", "nothing": None}
    answer = shared.post(path, body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-textloom-ignored"] == "qqq, api_server"
    assert "x-textloom-ignored" not in shared.post(path, BODIES[path]).headers
    refused = strict.post(path, body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "qqq"
    assert strict.post(path, BODIES[path]).status_code == 200


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
def test_a_stream_names_it_too(shared, path):
    answer = shared.post(path, {**BODIES[path], "qqq": 5, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-textloom-ignored"] == "qqq"


def test_fields_deep_inside_are_named_once_with_their_place(shared):
    part = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    tool = {"type": "function", "function": {"name": "a", "returns": {}}, "cache": 1}
    body = {
        "messages": [{"role": "user", "content": [part, part], "mood": "good"}] * 3,
        "tools": [tool],
        "tool_choice": "none",
        "stream": True,
        "stream_options": {"include_everything": True},
    }
    named = shared.post(CHAT, body).headers["x-textloom-ignored"].split(", ")
    assert sorted(named) == [
        "messages.*.content.*.cache_control",
        "messages.*.mood",
        "stream_options.include_everything",
        "tools.*.cache",
        "tools.*.function.returns",
    ]


def test_names_that_no_header_can_hold_are_written_so_that_it_can(shared):
    body = {"messages": HI, "字": 1, "a\r\nset-cookie: x=1": 2, "b,c": 3}
    answer = shared.post(CHAT, body)
    assert answer.headers["x-textloom-ignored"] == "%E5%AD%97, a%0D%0Aset-cookie%3A x%3D1, b%2Cc"
    assert "set-cookie" not in answer.headers
    many = shared.post(CHAT, {"messages": HI, **{f"unknown_{number}_{'x' * 100}": 1 for number in range(200)}})
    assert many.status_code == 200
    assert len(many.headers["x-textloom-ignored"]) < 4200
    assert many.headers["x-textloom-ignored"].endswith(" more")


def test_the_log_says_it_once(serve, caplog):
    server = serve()
    with caplog.at_level(logging.WARNING, "modules.api.common"):
        for _ in range(3):
            server.post(CHAT, {"messages": HI, "qqq": 5})
    assert [record.getMessage() for record in caplog.records] == ["a request had fields without effect: qqq"]


def test_a_flood_of_unknown_fields_is_refused(shared):
    flood = {f"unknown_{number}": 1 for number in range(300)}
    for body in ({"messages": HI, **flood}, {"messages": [{**HI[0], **flood}]}):
        answer = shared.post(CHAT, body)
        assert answer.status_code == 400 and "More than 256 fields" in answer.json()["error"]["message"]


def test_a_list_of_models_to_fall_back_on_is_no_slip(shared):
    answer = shared.post(CHAT, {"messages": HI, "models": ["a", "b"]})
    assert (answer.status_code, answer.headers["x-textloom-ignored"]) == (200, "models")


SLIPS = {
    # a field: (its path, what was meant)
    "temprature": "temperature",
    "max_token": "max_tokens",
    "max_tokens_": "max_tokens",
    "maxTokens": "max_tokens",
    "topP": "top_p",
    "stram": "stream",
    "tepmerature": "temperature",
    "repetition_penality": "repetition_penalty",
    "stopping_string": "stopping_strings",
    "max_new_token": "max_new_tokens",
}


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_field_one_slip_away_is_refused_with_the_right_name(shared, path, slip):
    answer = shared.post(path, {**BODIES[path], slip: 1})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (slip, "invalid_request_error")
    assert f"Did you mean '{SLIPS[slip]}'?" in error["message"]


def test_a_slip_deep_inside_is_refused_with_its_place(shared):
    answer = shared.post(CHAT, {"messages": [*HI, {"role": "assistant", "content": "x", "tool_callss": []}]})
    assert answer.json()["error"]["param"] == "messages.1.tool_callss"
    assert "'tool_calls'" in answer.json()["error"]["message"]
    answer = shared.post(RESPONSES, {"input": "hi", "max_output_token": 5})
    assert "'max_output_tokens'" in answer.json()["error"]["message"]


def test_options_of_the_server_itself_are_never_ignored(shared):
    answer = shared.post("/v1/internal/model/load", {"model": "x", "options": {"gpu_layerz": 1}})
    assert answer.status_code == 400
    assert "options.gpu_layerz" in answer.json()["error"]["message"]


def test_no_field_of_other_servers_is_taken_for_a_slip(shared):
    names = (INPUTS / "fields_of_other_servers.txt").read_text(encoding="utf-8").split()
    for path in (CHAT, TEXT, RESPONSES):
        answer = shared.post(path, {**BODIES[path], **dict.fromkeys(names, 1)})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-textloom-ignored"].startswith("skew, length_penalty, early_stopping")


def test_no_field_of_one_request_is_a_slip_in_another():
    kinds = [kind for kind in _all_kinds(Tolerant) if issubclass(kind, CommonRequest) and kind is not CommonRequest]
    assert len(kinds) == 3
    for kind in kinds:
        for name in {name for other in kinds for name in other.model_fields} - set(kind.names()):
            made = kind.model_construct()
            made._unknown = (name,)
            assert made.ignored() == [name]


def _all_kinds(kind: type[Tolerant]) -> list[type[Tolerant]]:
    return [kind, *(deeper for other in kind.__subclasses__() for deeper in _all_kinds(other))]


# --- names of other servers


SAME = {
    # what clients send: what it means here
    '{"max_new_tokens": 5}': {"max_tokens": 5},
    '{"max_length": 5}': {"max_tokens": 5},
    '{"n_predict": 5, "num_predict": 6}': {"max_tokens": 5},
    '{"min_length": 2}': {"min_tokens": 2},
    '{"stopping_strings": ["a", ""]}': {"stop": ("a",)},
    '{"stop_sequence": "a"}': {"stop": ("a",)},
    '{"ignore_eos": true}': {"ban_eos": True},
    '{"ban_eos_token": true}': {"ban_eos": True},
    '{"add_bos_token": false}': {"add_bos": False},
    '{"temp": 0.5}': {"temperature": 0.5},
    '{"typical": 0.5}': {"typical_p": 0.5},
    '{"tfs_z": 0.5}': {"tfs": 0.5},
    '{"nsigma": 1.5}': {"top_n_sigma": 1.5},
    '{"mirostat": 2}': {"mirostat_mode": 2},
    '{"rep_pen": 1.2, "rep_pen_range": 64}': {"repetition_penalty": 1.2, "repetition_penalty_range": 64},
    '{"repeat_penalty": 1.2, "repeat_last_n": 64}': {"repetition_penalty": 1.2, "repetition_penalty_range": 64},
    '{"repeat_last_n": -1}': {"repetition_penalty_range": 0},
    '{"repeat_last_n": 0}': {"repetition_penalty": 1.0},
    '{"freq_pen": 0.5, "presence_pen": 0.25}': {"frequency_penalty": 0.5, "presence_penalty": 0.25},
    '{"custom_token_bans": "5, 6"}': {"banned_tokens": (5, 6)},
    '{"custom_token_bans": [5]}': {"banned_tokens": (5,)},
    '{"bad_words": ["a"]}': {"banned_strings": ("a",)},
    '{"sampler_seed": 7}': {"seed": 7},
    '{"max_tokens_second": 9}': {"max_tokens_per_second": 9.0},
    '{"grammar_string": "root ::= \\"a\\""}': {"grammar": 'root ::= "a"'},
    '{"guided_grammar": "root ::= \\"a\\""}': {"grammar": 'root ::= "a"'},
    '{"guided_regex": "a+"}': {"regex": "a+"},
    '{"guided_json": {"type": "object"}}': {"json_schema": '{"type": "object"}'},
    '{"guided_json": "{}"}': {"json_schema": "{}"},
    '{"guided_choice": ["yes", "\\"no\\""]}': {"grammar": 'root ::= "yes" | "\\"no\\""'},
    '{"structured_outputs": {"regex": "a", "json": null}}': {"regex": "a"},
    '{"structured_outputs": {"choice": ["a"]}}': {"grammar": 'root ::= "a"'},
    '{"samplers": ["top_k", "typ_p", "edkypmxt"]}': {"sampler_order": ("top_k", "typical_p")},
    '{"sampler_priority": "temperature\\ndynamic_temperature\\nmin_p"}': {"sampler_order": ("temperature", "min_p")},
    '{"json_schema": {"type": "object"}}': {"json_schema": '{"type": "object"}'},
    '{"rep_pen": 1.5, "repetition_penalty": 1.2}': {"repetition_penalty": 1.2},
    '{"stop": [], "stopping_strings": ["a"]}': {"stop": ("a",)},
}


@pytest.mark.parametrize("sent", SAME)
def test_a_foreign_name_means_the_same(sent):
    body = SamplingBody.model_validate(json.loads(sent))
    assert body.ignored() == []
    assert body.given() == SAME[sent]


def test_the_settings_of_sillytavern_are_taken():
    file = INPUTS / "clients" / "sillytavern-textgen.json"
    body = SamplingBody.model_validate(json.loads(file.read_text(encoding="utf-8"))["body"])
    assert set(body.sampler_order) == set(DEFAULT_ORDER)
    assert body.sampler_order[:4] == ("penalties", "dry", "temperature", "quadratic")
    assert (body.max_tokens, body.repetition_penalty, body.stop[0]) == (16, 1.2, "\nAnn:")


def test_the_chat_fields_of_text_generation_webui_mean_the_same():
    sent = {"instruction_template": "Alpaca", "continue_": False, "mode": "instruct", "instruction_template_str": None}
    body = ChatCompletionRequest.model_validate({"messages": HI, **sent})
    assert (body.template, body.continue_final_message) == ("Alpaca", False)
    assert body.ignored() == []


def test_thinking_can_be_turned_off_as_qwens_clients_do():
    body = ChatCompletionRequest.model_validate({"messages": HI, "enable_thinking": False})
    assert body.chat_template_kwargs == {"enable_thinking": False}
    assert body.ignored() == []


def test_the_documents_name_every_foreign_field():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in (*foreign.TABLE, *OLDER, "enable_thinking", "reasoning", "function_call"):
        assert f"`{name}`" in page, name


# --- our own replies, and those of openai's client


def tool_call(number: int) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


BACK = {
    "annotations": {"content": "x", "annotations": []},
    "every null": {
        "content": "x",
        "annotations": None,
        "audio": None,
        "function_call": None,
        "refusal": None,
        "tool_calls": None,
    },
    "no calls": {"content": None, "tool_calls": []},
    "nothing": {"content": None},
    "index of a stream": {"content": None, "tool_calls": [{**tool_call(1), "index": 0}]},
    "thought": {"content": "x", "reasoning_content": "Hm."},
    "id": {"content": "x", "id": "msg_1"},
    "older call": {"content": None, "function_call": {"name": "weather", "arguments": "{}"}},
    "refused": {"content": None, "refusal": "I will not."},
    "part refused": {"content": [{"type": "refusal", "refusal": "I will not."}]},
    "part of a response": {"content": [{"type": "output_text", "text": "x", "annotations": [], "logprobs": []}]},
}


@pytest.mark.parametrize("case", BACK)
def test_a_reply_is_accepted_back(shared, case):
    answer = shared.post(CHAT, {"messages": [*HI, {"role": "assistant", **BACK[case]}, *HI]})
    assert answer.status_code == 200, answer.text
    if case != "part of a response":
        assert "x-textloom-ignored" not in answer.headers


def test_what_was_thought_reaches_the_template(serve):
    model = EchoModel(
        chat_template="{% for m in messages %}[{{ m.role }} {{ m.reasoning_content }}]{{ m.content }}{% endfor %}"
    )
    server = serve(model)
    for name in ("reasoning_content", "reasoning"):
        server.post(CHAT, {"messages": [*HI, {"role": "assistant", "content": "x", name: "Hm."}, *HI]}).raise_for_status()
        assert "[assistant Hm.]x" in model.render(model.requests[-1]).text


def test_older_calls_and_answers_are_those_of_tools(shared):
    older = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}}
    answered = {"role": "function", "name": "weather", "content": "Rain."}
    shared.post(CHAT, {"messages": [*HI, older, answered]}).raise_for_status()
    prompt = shared.model.requests[-1].prompt
    assert [turn.role for turn in prompt] == ["user", "assistant", "tool"]
    assert prompt[1].extra["tool_calls"][0]["function"]["name"] == "weather"


def test_openais_client_sends_back_what_it_got(shared):
    client = shared.client()
    for asked in ({}, {"logprobs": True}):
        said = client.chat.completions.create(model="echo", messages=HI, **asked).choices[0].message
        for form in (said, said.model_dump(), said.model_dump(exclude_unset=True), said.model_dump(mode="json")):
            client.chat.completions.create(model="echo", messages=[*HI, form, *HI])
    output = client.responses.create(model="echo", input="hi").output
    for form in (output, [item.model_dump() for item in output]):
        client.responses.create(model="echo", input=[*HI, *form, *HI])


def test_a_response_takes_what_responses_are_made_of(shared):
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None, "status": None}
    called = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}", "id": "fc", "status": "completed"}
    told = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "Rain."}]}
    refused = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "refusal", "refusal": "No."}],
        "phase": "final_answer",
    }
    answer = shared.post(
        RESPONSES, {"input": [*HI, thought, called, told, refused, {"type": "item_reference", "id": "rs_1"}, *HI]}
    )
    assert answer.status_code == 200, answer.text
    assert [turn.content for turn in shared.model.requests[-1].prompt] == ["hi", "", "Rain.", "No.", "hi"]
    answer = shared.post(RESPONSES, {"input": [*HI, {"type": "item_reference", "id": "msg_1"}]})
    assert answer.status_code == 400
    assert "nothing is stored" in answer.json()["error"]["message"]


# --- off, and not set


UNSET = {
    # fields of a chat request: what they mean
    '{"max_tokens": -1}': {},
    '{"max_completion_tokens": -1}': {},
    '{"top_k": -1}': {"top_k": 0},
    '{"stop": ""}': {},
    '{"stop": [""]}': {"stop": ()},
    '{"stop": ["", "x"]}': {"stop": ("x",)},
    '{"logit_bias": []}': {},
    '{"logit_bias": [[5, -1.5], [6, false]]}': {"logit_bias": {"5": -1.5, "6": -100.0}},
    '{"seed": ""}': {},
    '{"seed": -1}': {"seed": -1},
    '{"repetition_penalty": 0}': {"repetition_penalty": 1.0},
    '{"repetition_penalty": 0.0}': {"repetition_penalty": 1.0},
    '{"temperature": "", "top_p": "", "n": ""}': {},
    '{"top_logprobs": 0}': {"top_logprobs": 0},
    '{"response_format": {"type": ""}}': {},
    '{"response_format": {}}': {},
    '{"response_format": ""}': {},
    '{"tools": [], "tool_choice": ""}': {"tools": ()},
    '{"model": "", "preset": "", "adapter": "", "user": ""}': {},
    '{"grammar": "", "regex": "", "json_schema": ""}': {},
    '{"json_schema": {}, "guided_json": {}}': {},
    '{"banned_tokens": "", "custom_token_bans": "", "banned_strings": [""]}': {"banned_strings": ()},
}


@pytest.mark.parametrize("sent", UNSET)
def test_off_and_unset_are_understood(shared, sent):
    body = {"messages": HI, **json.loads(sent)}
    given = ChatCompletionRequest.model_validate(body).given()
    del given["messages"]
    assert given == UNSET[sent]
    answer = shared.post(CHAT, body)
    assert answer.status_code == 200, answer.text
    assert shared.post(CHAT, {**body, "stream": True}).status_code == 200


def test_lengths_without_a_bound_are_as_long_as_the_context(shared):
    for path, name in ((CHAT, "max_tokens"), (TEXT, "max_tokens"), (RESPONSES, "max_output_tokens"), (TEXT, "n_predict")):
        shared.post(path, {**BODIES[path], name: -1}).raise_for_status()
        assert shared.model.requests[-1].sampling.max_tokens == shared.model.context_length


def test_no_tokens_at_all_are_written_where_openai_writes_none(shared):
    for stream in (False, True):
        answer = shared.post(TEXT, {"prompt": "hi", "max_tokens": 0, "stream": stream})
        assert answer.status_code == 200
    answer = shared.post(TEXT, {"prompt": "hi", "max_tokens": 0}).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("", "length")
    assert answer["usage"]["completion_tokens"] == 0
    for path, name in ((CHAT, "max_tokens"), (CHAT, "max_completion_tokens"), (RESPONSES, "max_output_tokens")):
        assert shared.post(path, {**BODIES[path], name: 0}).json()["error"]["param"] == name


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_no_replies_are_refused_with_a_sentence(shared, path):
    answer = shared.post(path, {**BODIES[path], "n": 0})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "'n' must be greater than or equal to 1, not 0."


def test_completions_take_the_spellings_of_chat(shared):
    for body in ({"logprobs": False}, {"max_completion_tokens": 3}, {"stop": "", "seed": "", "best_of": None, "suffix": ""}):
        answer = shared.post(TEXT, {"prompt": "hello", **body})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["logprobs"] is None
        assert "x-textloom-ignored" not in answer.headers
    assert shared.post(TEXT, {"prompt": "hello", "max_completion_tokens": 3}).json()["choices"][0]["text"] == "hel"


def test_an_empty_text_says_nothing_except_where_one_is_needed(shared):
    assert (
        shared.post("/v1/embeddings", {"input": "hi", "model": "", "encoding_format": "", "dimensions": ""}).status_code == 200
    )
    assert shared.post(TEXT, {"prompt": "", "max_tokens": 2}).status_code == 200
    assert shared.post("/v1/internal/token-count", {"text": ""}).json() == {"length": 0}
    assert shared.post(RESPONSES, {"input": ""}).json()["error"]["param"] == "input"


BREAKERS = {
    "list": ["\n", ":", '"', "*"],
    "JSON": '["\\n", ":", "\\"", "*"]',
    "JSON with a line in it": '["\n", ":", "\\"", "*"]',
    "quoted": '"\\n", ":", "\\"", "*"',
}


@pytest.mark.parametrize("spelling", BREAKERS)
def test_breakers_mean_the_same_in_every_spelling(shared, tmp_path, spelling):
    shared.post(CHAT, {"messages": HI, "dry_sequence_breakers": BREAKERS[spelling]}).raise_for_status()
    assert shared.model.requests[-1].sampling.dry_sequence_breakers == ("\n", ":", '"', "*")
    preset = shared.app.presets.folder / f"{spelling}.yaml"
    preset.write_text(json.dumps({"dry_sequence_breakers": BREAKERS[spelling], "top_k": 3}), encoding="utf-8")
    assert shared.app.presets.read(spelling).dry_sequence_breakers == ("\n", ":", '"', "*")


def test_breakers_that_cannot_be_read_are_refused(shared):
    answer = shared.post(CHAT, {"messages": HI, "dry_sequence_breakers": "\\n, :"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "dry_sequence_breakers"
    assert "list of texts" in answer.json()["error"]["message"]
    shared.post(CHAT, {"messages": HI, "dry_sequence_breakers": []}).raise_for_status()
    assert shared.model.requests[-1].sampling.dry_sequence_breakers == ()


# --- the API of July 2023


def post_2023(server: Server, path: str, body: dict[str, Any]) -> Any:
    with TestClient(legacy.build(server.app), base_url="http://localhost") as client:
        return client.post(f"/api/v1/{path}", json=body)


def test_the_api_of_2023_tells_and_refuses_alike(shared, strict):
    body = {"prompt": "hi", "qqq": 1, "use_mancer": False, "rep_pen": 1.3, "top_k": -1, "tfs_z": 0.9, "stop": [""], "seed": ""}
    answer = post_2023(shared, "generate", body)
    assert answer.json() == {"results": [{"text": "hi"}]}
    assert answer.headers["x-textloom-ignored"] == "qqq, use_mancer"
    sampling = shared.model.requests[-1].sampling
    assert (sampling.repetition_penalty, sampling.top_k, sampling.tfs, sampling.stop) == (1.3, 0, 0.9, ())
    slip = post_2023(shared, "generate", {"prompt": "hi", "temprature": 1})
    assert slip.status_code == 400
    assert "'temperature'" in slip.json()["error"]["message"]
    chat = post_2023(shared, "chat", {"user_input": "hi", "mode": "instruct", "your_name": "Ann", "stop_at_newline": False})
    assert chat.headers["x-textloom-ignored"] == "stop_at_newline"
    assert post_2023(strict, "generate", body).json()["error"]["param"] == "qqq"


def test_a_websocket_of_2023_is_no_different(shared, strict, caplog):
    for server, told in ((shared, "text_stream"), (strict, "error")):
        with TestClient(legacy.build(server.app), base_url="http://localhost") as client:
            with client.websocket_connect("ws://localhost/api/v1/stream") as socket:
                socket.send_json({"prompt": "hi", "some_thing": 1})
                event = socket.receive_json()
                assert told in (event.get("event"), *event)


def test_openais_client_sees_a_slip_as_a_bad_request(shared):
    with pytest.raises(openai.BadRequestError, match="Did you mean 'temperature'"):
        shared.client().chat.completions.create(model="echo", messages=HI, extra_body={"temprature": 1})
