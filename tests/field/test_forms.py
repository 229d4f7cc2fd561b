"""Forms of replies as the field sends them: those that unfold without end, that have no reply, that spell control tokens."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.stream import EventStream
from modules.generation.types import Finished, GenerationRequest, LoadedModel, TextDelta
from tests.fakes import EchoModel
from tests.in_process import make_app, serving
from tests.tiny import CHATML

FORMS = Path(__file__).parent / "inputs" / "forms"
FIELDS = {".json": "json_schema", ".regex": "regex", ".gbnf": "grammar", ".lark": "grammar"}
SPACE = r"(?: |\n{1,2}[ \t]{0,20})?"


def forms(kind: str) -> list[str]:
    return sorted(path.name for path in (FORMS / kind).iterdir())


def read(kind: str, name: str) -> dict[str, str]:
    """A form as a setting of a request."""
    path = FORMS / kind / name
    return {FIELDS[path.suffix]: path.read_text(encoding="utf-8").removesuffix("\n")}


def local_model(folder: Path, gguf: Path) -> LoadedModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from modules.generation.local.model import Limits, LocalModel

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return LocalModel("tiny", model, tokenizer, Limits(cache_bytes=1 << 28, max_parallel=2))


def llamacpp_model(folder: Path, gguf: Path) -> LoadedModel:
    from modules.generation.llamacpp.model import LlamacppModel
    from modules.generation.llamacpp.server_config import Launch
    from modules.library.gguf_header import read_control_tokens

    launch = Launch(str(gguf), "", 2048, 2, threads=1, batch=32, cpu=True)
    return LlamacppModel("tiny", launch, chat_template=CHATML, control=read_control_tokens(gguf))


LOADERS = {"transformers": local_model, "llama.cpp": llamacpp_model}


@pytest.fixture(scope="module", params=LOADERS)
def model(request: pytest.FixtureRequest, tiny_llama_folder: Path, tiny_gguf: Path) -> Iterator[LoadedModel]:
    model = LOADERS[request.param](tiny_llama_folder, tiny_gguf)
    yield model
    model.close()


def start(model: LoadedModel, **sampling: Any) -> EventStream:
    return model.stream(GenerationRequest("Hello there", SamplingParams(**{"max_tokens": 400, "seed": 1, **sampling})))


def reply(model: LoadedModel, **sampling: Any) -> tuple[str, str]:
    """(text, why it ended)."""
    events = list(start(model, **sampling))
    assert isinstance(events[-1], Finished)
    return "".join(event.text for event in events if isinstance(event, TextDelta)), events[-1].reason


# --- what has no reply, and what has too much in it


@pytest.mark.parametrize("name", forms("never"))
def test_a_form_that_no_finite_reply_has_is_refused_before_the_first_token(name: str, model: LoadedModel) -> None:
    form = read("never", name)
    with pytest.raises(UserError) as raised:
        start(model, **form)
    assert raised.value.status == 400
    assert (raised.value.param or "").split(".")[0] in form


@pytest.mark.parametrize("name", forms("huge"))
def test_a_form_that_unfolds_to_too_much_is_refused_before_the_first_token(name: str, model: LoadedModel) -> None:
    with pytest.raises(UserError) as raised:
        start(model, **read("huge", name))
    assert raised.value.status == 400
    assert len(raised.value.message) < 1000


def test_forms_that_refer_to_themselves_and_have_a_way_out_are_held(model: LoadedModel) -> None:
    tree = {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1, "maxItems": 2}]}
    text, reason = reply(model, json_schema=json.dumps(tree))
    assert reason == "length" or json.loads(text) is None or json.loads(text)
    assert reply(model, grammar='root ::= "x" root | "y"')[0].strip("x") in ("y", "")
    assert reply(model, grammar='start: ""') == ("", "stop")


@pytest.mark.slow
@pytest.mark.alone
def test_neighbours_notice_nothing_of_forms_that_unfold_without_end(model: LoadedModel) -> None:
    start(model, json_schema="{}").close()  # the process that tries forms is there
    gaps: list[float] = []
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            last = time.monotonic()
            for _ in start(model, ban_eos=True, max_tokens=300):
                gaps.append(time.monotonic() - last)
                last = time.monotonic()

    neighbour = threading.Thread(target=listen)
    neighbour.start()
    try:
        for name in forms("huge"):
            asked = time.monotonic()
            with pytest.raises(UserError):
                start(model, **read("huge", name))
            assert time.monotonic() - asked < 3, name
    finally:
        over.set()
        neighbour.join()
    # One that stood still for a whole compilation would be seen: they took 17 s and more.
    assert max(gaps) < 1


def test_the_process_that_tries_forms_may_die(model: LoadedModel) -> None:
    assert reply(model, regex="ab") == ("ab", "stop")
    process = model._trials._process  # type: ignore[attr-defined]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert reply(model, regex="ab") == ("ab", "stop")
    assert model._trials._process is not process  # type: ignore[attr-defined]


# --- a reply keeps its form to its end


@pytest.mark.parametrize("name", forms("breaks"))
def test_a_form_that_breaks_in_the_middle_of_a_reply_ends_it_with_an_error(name: str, model: LoadedModel) -> None:
    """With each letter there are more readings of all before, until llguidance gives up or it takes too long."""
    (a,) = model.tokenize("a")
    said = ""
    with pytest.raises(UserError, match="form"):
        for event in start(model, **read("breaks", name), logit_bias={str(a): 100.0}):
            said += event.text if isinstance(event, TextDelta) else ""
    assert set(said) <= {"a"}


def test_a_form_that_the_other_settings_leave_no_token_for_never_gives_free_text(model: LoadedModel) -> None:
    (b,) = model.tokenize("b")
    said = ""
    with pytest.raises(UserError):
        for event in start(model, regex="abc", banned_tokens=(b,)):
            said += event.text if isinstance(event, TextDelta) else ""
    assert said in ("", "a")


def test_a_reply_ends_with_its_form_even_where_the_end_is_banned(model: LoadedModel) -> None:
    assert reply(model, regex="abc", ban_eos=True) == ("abc", "stop")


def test_a_token_that_a_grammar_names_and_the_model_lacks_is_told(model: LoadedModel) -> None:
    with pytest.raises(UserError, match="nope"):
        start(model, grammar='start: <|nope|> "x"')
    assert reply(model, grammar='start: <|im_start|> "x"') == ("x", "stop")
    assert reply(model, grammar='start: "ab" <|im_end|>') == ("ab", "stop")


@pytest.mark.parametrize("name", forms("control"))
def test_text_that_spells_a_control_token_is_written_with_ordinary_tokens(name: str, model: LoadedModel) -> None:
    form = read("control", name)
    text, reason = reply(model, **form)
    assert reason == "stop"
    if "json_schema" in form:
        schema = json.loads(form["json_schema"])
        said = json.loads(text)
        assert said == schema["const"] if "const" in schema else said in schema.get("enum", [{"<|im_start|>": 1}])
    else:
        assert text in ("a<|im_start|>b</s>", "<|im_end|><s>", "<|im_end|>", "x<|im_start|>")


# --- white space


@pytest.mark.slow
@pytest.mark.parametrize("name", forms("written"))
def test_json_does_not_drown_in_white_space_and_ends_with_its_last_bracket(name: str, model: LoadedModel) -> None:
    form = read("written", name)
    for seed in range(20):
        text, reason = reply(model, **form, seed=seed)
        assert reason == "stop"
        json.loads(text)
        assert text[-1] in "}]"
        parts = re.findall(r'"[^"]*"|[^\s"]+|\s+', text)
        assert all(re.fullmatch(SPACE, part) for part in parts if part.isspace()), text


# --- over the API


Post = Callable[[str, dict[str, Any] | str], httpx.Response]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def post(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Post]:
    """post(path, body): the answer of a server with the model loaded, which stays open for others."""

    class Kept:
        """The model, without its end."""

        def __getattr__(self, name: str) -> Any:
            return (lambda: None) if name == "close" else getattr(model, name)

    app = make_app(tmp_path_factory.mktemp("server"), Kept(), nowebui=True)  # type: ignore[arg-type]
    with ExitStack() as stack:
        stack.callback(app.close)
        address = stack.enter_context(serving(app))
        client = stack.enter_context(httpx.Client(base_url=address, timeout=60))

        def post(path: str, body: dict[str, Any] | str) -> httpx.Response:
            return client.post(path, content=body if isinstance(body, str) else json.dumps(body), headers=JSON)

        yield post


ASK = [{"role": "user", "content": "Hi"}]
EVENT = {
    "type": "object",
    "properties": {
        "when": {"type": "string", "format": "moon-phase", "maxLength": 3},
        "who": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "maxItems": 2},
    },
    "required": ["when", "who"],
    "additionalProperties": False,
}
TOOLS_TEMPLATE = "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}" + CHATML


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


DIALECTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "response_format": (
        "/v1/chat/completions",
        {"messages": ASK, "response_format": {"type": "json_schema", "json_schema": {"name": "event", "schema": "SCHEMA"}}},
        "response_format.json_schema.schema.",
    ),
    "streamed": (
        "/v1/chat/completions",
        {"messages": ASK, "stream": True, "json_schema": "TEXT"},
        "json_schema.",
    ),
    "tools": (
        "/v1/chat/completions",
        {
            "messages": ASK,
            "template": TOOLS_TEMPLATE,
            "tools": [tool("other", {"type": "object"}), tool("event", "SCHEMA")],  # type: ignore[arg-type]
            "tool_choice": {"type": "function", "function": {"name": "event"}},
        },
        "tools.1.function.parameters.",
    ),
    "one of the tools": (
        "/v1/chat/completions",
        {
            "messages": ASK,
            "template": TOOLS_TEMPLATE,
            "tools": [tool("other", {"type": "object"}), tool("event", "SCHEMA")],  # type: ignore[arg-type]
            "tool_choice": "required",
        },
        "tools.1.function.parameters.",
    ),
    "completions": ("/v1/completions", {"prompt": "Hi", "json_schema": "TEXT"}, "json_schema."),
    "responses": (
        "/v1/responses",
        {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "event", "schema": "SCHEMA"}}},
        "text.format.schema.",
    ),
}


def filled(part: Any, schema: Any) -> Any:
    """A body with `schema` in its place."""
    match part:
        case "SCHEMA":
            return schema
        case "TEXT":
            return json.dumps(schema)
        case dict():
            return {key: filled(value, schema) for key, value in part.items()}
        case list():
            return [filled(value, schema) for value in part]
        case _:
            return part


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_a_schema_says_without_effect_is_named_in_the_head(dialect: str, post: Post) -> None:
    path, body, place = DIALECTS[dialect]
    answer = post(path, {**filled(body, EVENT), "seed": 1})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-textloom-ignored"] == f"{place}properties.when.format, {place}properties.who.uniqueItems"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_cannot_be_held_is_refused_with_keyword_and_place(dialect: str, post: Post) -> None:
    path, body, place = DIALECTS[dialect]
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"not": {"type": "null"}}}}}}
    answer = post(path, filled(body, schema))
    assert answer.status_code == 400
    error = answer.json()["error"]
    # A body of completions names its own field; the others say where it is in what the client sent.
    assert error["param"] == f"{place}properties.a.properties.b.not"
    assert error["param"] in error["message"] or dialect == "completions"
    assert "not" in error["message"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_form_without_a_finite_reply_is_a_400_in_every_dialect(dialect: str, post: Post) -> None:
    path, body, _ = DIALECTS[dialect]
    endless = {"$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}, "minItems": 1}}}
    schema = {**endless, "type": "object", "properties": {"a": {"$ref": "#/$defs/node"}}, "required": ["a"]}
    if dialect == "one of the tools":
        body = {**body, "tools": body["tools"][1:]}
    answer = post(path, filled(body, schema))
    assert answer.status_code == 400, answer.text
    assert "no reply that ends" in answer.json()["error"]["message"]


def test_one_of_is_taken_as_any_of_and_told_where_that_is_more(post: Post) -> None:
    schemas = {
        "": {"oneOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"type": "null"}]},
        "json_schema.oneOf": {"oneOf": [{"enum": ["a", "b"]}, {"type": "string", "maxLength": 2}]},
    }
    for told, schema in schemas.items():
        answer = post("/v1/completions", {"prompt": "Hi", "json_schema": json.dumps(schema), "seed": 1})
        assert answer.status_code == 200, answer.text
        assert answer.headers.get("x-textloom-ignored", "") == told


def test_nothing_is_told_of_a_schema_that_is_held(post: Post) -> None:
    schema = {"type": "array", "items": {"type": "string", "format": "date"}, "uniqueItems": True, "maxItems": 1}
    answer = post("/v1/completions", {"prompt": "Hi", "json_schema": json.dumps(schema), "seed": 1})
    assert answer.status_code == 200
    assert "x-textloom-ignored" not in answer.headers


@pytest.mark.parametrize("name", forms("inexact"))
def test_a_number_that_would_become_another_is_refused_with_its_place(name: str, model: LoadedModel) -> None:
    form = read("inexact", name)
    place = {"const.json": "const", "digits.json": "properties.a.const", "enum.json": "enum.1.a"}.get(name, "minimum")
    with pytest.raises(UserError, match=rf"at {place}: so large a number") as raised:
        start(model, **form)
    assert (raised.value.status, raised.value.param) == (400, f"json_schema.{place}")


@pytest.mark.parametrize("number", [2**53, -(2**53), 2**53 - 1])
def test_large_integers_that_can_be_held_are(number: int, model: LoadedModel) -> None:
    for schema in (
        {"const": number},
        {"enum": [number]},
        {"type": "integer", "minimum": number, "maximum": number},
    ):
        assert json.loads(reply(model, json_schema=json.dumps(schema))[0]) == number


@pytest.mark.parametrize(("least", "most"), [(-(2**63), 2**63 - 1), (0, 2**64 - 1)])
def test_the_range_of_a_64_bit_integer_is_told_and_stops_nothing(least: int, most: int, model: LoadedModel) -> None:
    with start(model, json_schema=json.dumps({"type": "integer", "minimum": least, "maximum": most})) as events:
        assert events.ignored == (("minimum", "maximum") if least else ("maximum",))


def test_upper_bounds_that_no_reply_reaches_are_none(model: LoadedModel) -> None:
    for schema in (
        {"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000_000},
        {"type": "string", "maxLength": 1_000_000_000},
        {"type": "object", "maxProperties": 1_000_000_000},
    ):
        start(model, json_schema=json.dumps(schema)).close()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"grammar": 'root ::= "a"\n  "\\uD800"'}, r"^The grammar has a mistake in line 2: \\ud800 is no character"),
        ({"grammar": 'root ::= "\\U00110000"'}, "in line 1: Unicode has no character 110000"),
        ({"grammar": 'start: "\ud800"'}, "in line 1: "),
        ({"regex": "\ud800"}, "in line 1: "),
        ({"grammar": f'root ::= "a"{{ {"9" * 5000}}}'}, "no reply is that long"),
        ({"grammar": f'root ::= "a"{{1,{"9" * 5000}}}'}, "no reply is that long"),
        ({"regex": "(" * 3000 + "a" + ")" * 3000}, "nested parentheses"),
        ({"json_schema": '{"items": {"type": "number", "minimum": 1e-300, "maximum": 1e300}}'}, "at items.m[a-z]+imum: "),
        ({"json_schema": '{"const": 1e999}'}, "at const: so large a number"),
    ],
)
def test_a_mistake_is_told_with_its_cause_and_place(form: dict[str, str], said: str, model: LoadedModel) -> None:
    with pytest.raises(UserError, match=said) as raised:
        start(model, **form)
    assert raised.value.status == 400
    assert len(raised.value.message) < 350


def test_counts_of_counts_in_gbnf_keep_their_brackets(model: LoadedModel) -> None:
    assert reply(model, grammar='root ::= (("a"{2}){3}){1} ("b"*)?', logit_bias={})[0].startswith("a" * 6)


def test_a_bias_of_no_token_is_told_in_a_sentence() -> None:
    for token in ("9" * 5000, "-1", "²"):
        with pytest.raises(ValueError, match="is not a token id") as raised:
            SamplingParams(logit_bias={token: 1})
        assert len(str(raised.value)) < 600


# --- calls


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("kind", ["string", "array", ["array", "null"]])
def test_arguments_that_are_no_object_are_refused(kind: Any, choice: str, post: Post) -> None:
    spec = tool("event", {"type": kind})
    body = {"template": TOOLS_TEMPLATE, "tool_choice": choice}
    answer = post("/v1/chat/completions", {**body, "messages": ASK, "tools": [spec]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools.0.function.parameters.type")
    answer = post("/v1/responses", {"tool_choice": choice, "input": "Hi", "tools": [{"type": "function", **spec["function"]}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools.0.parameters.type")


@pytest.mark.parametrize("schema", [{"type": ["object", "string"]}, {"anyOf": [{"type": "string"}, {"type": "object"}]}])
def test_a_forced_call_has_an_object_as_its_arguments(schema: dict[str, Any], post: Post, model: LoadedModel) -> None:
    (quote,) = model.tokenize('"')
    body = {"messages": ASK, "template": TOOLS_TEMPLATE, "tools": [tool("event", schema)], "tool_choice": "required"}
    answer = post("/v1/chat/completions", {**body, "seed": 1, "max_tokens": 60, "logit_bias": {str(quote): 50}})
    assert answer.status_code == 200, answer.text
    (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"].startswith("{")


def test_a_number_of_thousands_of_digits_in_a_body_is_a_400(post: Post) -> None:
    nines = "9" * 5000
    ask = '{"prompt": "Hi", "max_tokens": 1, '
    for body in (
        ask + '"logit_bias": [[' + nines + ", 1]]}",
        ask + '"logit_bias": {"' + nines + '": 1}}',
        ask + '"json_schema": {"const": ' + nines + "}}",
        ask + '"seed": ' + nines + "}",
    ):
        answer = post("/v1/completions", body)
        assert answer.status_code == 400, answer.text
        assert "set_int_max_str_digits" not in answer.text


CALL = '<tool_call>{"name": "time", "arguments": {"zone": "CET"}}</tool_call>'
TOOLS = [tool("time", {"type": "object"})]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_without_parallel_calls_the_reply_ends_after_the_first_whole_call(path: str, stream: bool, tmp_path: Path) -> None:
    echo = EchoModel(lambda request: CALL * 50, chat_template=TOOLS_TEMPLATE, pace=0.001)
    app = make_app(tmp_path, echo, nowebui=True)
    chat = path.endswith("completions")
    body = (
        {"messages": ASK, "tools": TOOLS} if chat else {"input": "Hi", "tools": [{"type": "function", **TOOLS[0]["function"]}]}
    )
    with serving(app) as address, httpx.Client(timeout=60) as client:
        answer = client.post(address + path, json={**body, "parallel_tool_calls": False, "stream": stream})
        assert echo.streams[0].closed
    app.close()
    assert answer.status_code == 200
    assert answer.text.count("call_id" if not chat else '"id":"call_') <= (1 if chat else 8)
    if stream:
        assert not chat or '"finish_reason":"tool_calls"' in answer.text
        return
    if chat:
        (choice,) = answer.json()["choices"]
        calls = [call["function"] for call in choice["message"]["tool_calls"]]
        assert choice["finish_reason"] == "tool_calls"
        written = answer.json()["usage"]["completion_tokens"]
    else:
        assert answer.json()["status"] == "completed"
        calls = [item for item in answer.json()["output"] if item["type"] == "function_call"]
        written = answer.json()["usage"]["output_tokens"]
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("time", {"zone": "CET"})]
    assert 0 < written < 5 * len(CALL)


# --- places in errors


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/chat/completions",
            {"messages": ASK, "response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 3}}]}]},
            "messages.0.content.0.image_url.url",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            "messages.0.content.0.text",
        ),
        (
            "/v1/chat/completions",
            {"messages": ASK, "tools": [{"type": "function", "function": {"name": 3}}]},
            "tools.0.function.name",
        ),
        (
            "/v1/responses",
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}},
            "text.format.name",
        ),
        (
            "/v1/responses",
            {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": 3}]}]},
            "input.0.content.0.text",
        ),
    ],
)
def test_an_error_names_the_field_as_the_request_has_it(path: str, body: dict[str, Any], param: str, post: Post) -> None:
    answer = post(path, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert f"'{param}'" in answer.json()["error"]["message"]
