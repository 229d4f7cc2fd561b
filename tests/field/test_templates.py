"""Chat templates as models bring them: what was said is seen by the model, or the refusal says why it is not."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modules.access import ANYONE
from modules.errors import EngineGone, UserError
from modules.generation.template import Arguments, has_no_place_for, render_chat
from modules.generation.types import GenerationRequest, Message, Role
from modules.library.models import describe
from modules.loaders.choose import load
from modules.loaders.options import LoadOptions
from tests.api.conftest import Server, servers, wait_until
from tests.api.page.test_chats import Page
from tests.fakes import CHATML, EchoModel
from tests.in_process import make_app
from tests.tiny_gguf import write_gguf

INPUTS = Path(__file__).parent / "inputs"
GEMMA, DEAF, ONE_SYSTEM, SYSTEM_LAST, JOINING, WALKING = (
    (INPUTS / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    for name in (
        "gemma",
        "ignores_the_system",
        "one_system_alone",
        "system_with_the_last_question",
        "joins_arguments",
        "walks_through_arguments",
    )
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    with servers(tmp_path_factory.mktemp("templates")) as begin:
        running: dict[str, Server] = {}

        def with_template(source: str) -> Server:
            if source not in running:
                running[source] = begin(EchoModel(lambda request: "Yes.", chat_template=source))
            return running[source]

        yield with_template


def seen(server: Server, messages: list[dict[str, Any]], **more: Any) -> str:
    """The prompt that the model reads."""
    answer = server.post("/v1/internal/chat-prompt", {"messages": messages, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["prompt"]


# --- turns that a template has no place for


@pytest.mark.parametrize("source", [GEMMA, DEAF, ONE_SYSTEM, SYSTEM_LAST], ids=["refuses", "ignores", "one alone", "last"])
def test_every_order_of_turns_is_shown_whole(source: str) -> None:
    roles: tuple[Role, ...] = ("system", "user", "assistant")
    for length in range(1, 5):
        for order in itertools.product(roles, repeat=length):
            turns = [Message(role, f"<{at}>") for at, role in enumerate(order)]
            text = render_chat(source, turns)
            assert [turn.content for turn in turns if turn.content not in text] == [], order


def test_a_system_that_the_template_ignores_stands_before_the_first_question() -> None:
    turns = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Why?")]
    assert render_chat(DEAF, turns) == "Human: Be brief.\n\nHi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"


def test_a_template_that_shows_all_of_it_is_given_all_of_it_unchanged() -> None:
    turns = [Message(role, f"{at}") for at, role in enumerate(("system", "system", "assistant", "user", "user", "system"))]
    expected = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
    assert render_chat(CHATML, turns, add_generation_prompt=False) == expected


def test_a_reply_and_the_users_words_are_continued_behind_folded_turns() -> None:
    turns = [Message("system", "Told."), Message("assistant", "Welcome."), Message("user", "A"), Message("user", "B")]
    assert render_chat(GEMMA, [*turns, Message("assistant", "So")], continue_reply=True).endswith(
        "A\n\nB<end_of_turn>\n<start_of_turn>model\nSo"
    )
    assert render_chat(GEMMA, turns, continue_reply=True).endswith("A\n\nB")
    assert render_chat(GEMMA, turns[:2], continue_reply=True).endswith("<start_of_turn>model\nWelcome.")


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("source", [GEMMA, DEAF], ids=["refuses", "ignores"])
def test_what_the_system_says_reaches_the_model_over_the_api(start: Callable[..., Server], source: str, role: str) -> None:
    messages = [{"role": role, "content": "Answer in French."}, {"role": "user", "content": "Hello"}]
    assert "Answer in French.\n\nHello" in seen(start(source), messages)
    late = [messages[1], {"role": "assistant", "content": "Hi"}, messages[0], {"role": "user", "content": "More"}]
    assert "Answer in French." in seen(start(source), late)


def test_the_page_and_the_api_are_told_what_a_template_has_no_place_for(start: Callable[..., Server]) -> None:
    info = start(GEMMA).client().get("/internal/model/info", cast_to=dict)  # type: ignore[arg-type]
    assert info["template_has_no_place_for"] == ["system", "greeting", "repeated"]
    assert info["template_problem"] is None
    assert has_no_place_for(CHATML) == () == has_no_place_for("{# The engine renders it. #}")
    assert has_no_place_for(DEAF) == ("system", "tool")
    from modules.api.model_answers import engine_view

    app = start(DEAF).app
    assert engine_view(app, app.manager.status).no_place_for == ("system", "tool")


def test_a_tools_answer_that_the_template_leaves_out_is_refused(start: Callable[..., Server]) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Noon."},
    ]
    refused = start(DEAF).post("/v1/chat/completions", {"messages": messages})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    assert "tools answered" in refused.json()["error"]["message"]
    assert "Noon." in seen(start(JOINING), messages)


# --- the arguments of earlier calls


def called(arguments: str) -> list[dict[str, Any]]:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [
        {"role": "user", "content": "How is it in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]


SENT = ['{"city":"Oslo"}', '{ "city" : "Oslo",\n "days": 2.50 }', '{"text": "a \\"b\\" \\u00e9 \\n"}', "{}"]


@pytest.mark.parametrize("sent", SENT)
def test_a_template_that_joins_text_gets_exactly_what_was_sent(start: Callable[..., Server], sent: str) -> None:
    assert f'{{"name": "weather", "arguments": {sent}}}' in seen(start(JOINING), called(sent))


@pytest.mark.parametrize("sent", SENT)
def test_a_template_that_looks_into_them_gets_an_object(start: Callable[..., Server], sent: str) -> None:
    expected = "".join(f"{key}={json.dumps(value, ensure_ascii=False)};" for key, value in json.loads(sent).items())
    assert f"weather({expected})" in seen(start(WALKING), called(sent))


@pytest.mark.parametrize(
    "written",
    [
        "{{ a }}",
        "{{ a ~ '' }}",
        "{{ '' ~ a }}",
        "{{ a + '' }}",
        "{{ '%s' % a }}",
        "{{ a | string }}",
        "{{ [a] | join }}",
        "{{ a | trim }}",
    ],
)
def test_every_way_of_joining_shows_the_text(written: str) -> None:
    call = {"function": {"name": "f", "arguments": SENT[1]}}
    source = "{% set a = messages[-1].tool_calls[0].function.arguments %}" + written
    assert render_chat(source, [Message("assistant", "x", extra={"tool_calls": [call]})]) == SENT[1]
    asked = "{% set a = messages[-1].tool_calls[0].function.arguments %}{{ a is mapping }} {{ a is string }} {{ a.days }} {{ a | tojson }}"
    assert (
        render_chat(asked, [Message("assistant", "x", extra={"tool_calls": [call]})])
        == 'True False 2.5 {"city": "Oslo", "days": 2.5}'
    )


def test_arguments_stay_what_they_are_on_their_way_to_another_process() -> None:
    sent = pickle.loads(pickle.dumps(Arguments(SENT[1])))
    assert (str(sent), dict(sent)) == (SENT[1], json.loads(SENT[1]))


def test_no_text_is_a_call_without_arguments(start: Callable[..., Server]) -> None:
    assert '{"name": "weather", "arguments": {}}' in seen(start(JOINING), called(""))
    assert "weather()" in seen(start(WALKING), called(""))


@pytest.mark.parametrize("arguments", ["null", "[1]", '{"city": "Os', '"text"', "3", "[" * 100_000])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_what_is_no_object_is_refused_with_the_message_it_is_in(
    start: Callable[..., Server], path: str, arguments: str
) -> None:
    body: dict[str, Any] = {"messages": called(arguments)}
    if path.endswith("responses"):
        call = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": arguments}
        body = {"input": [{"role": "user", "content": "Hi"}, call]}
    answer = start(JOINING).post(path, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages.1.tool_calls.0.function.arguments"
    assert "message 2" in answer.json()["error"]["message"] and "not a JSON object" in answer.json()["error"]["message"]


def test_another_engine_is_sent_the_arguments_as_text(start: Callable[..., Server]) -> None:
    server = start(WALKING)
    server.post("/v1/chat/completions", {"messages": called(SENT[0])})
    (turn,) = (part for part in server.model.requests[-1].prompt if isinstance(part, Message) and "tool_calls" in part.extra)
    assert turn.extra["tool_calls"][0]["function"]["arguments"] == SENT[0]


# --- templates that are empty or broken


def with_files(folder: Path, target: Path, **files: str) -> Path:
    shutil.copytree(folder, target)
    for name, text in files.items():
        (target / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return target


@pytest.mark.parametrize("empty", ["", "\n \n"])
def test_an_empty_template_file_hides_no_other(tiny_llama_folder: Path, tmp_path: Path, empty: str) -> None:
    folder = with_files(tiny_llama_folder, tmp_path / "tiny", chat_template__jinja=empty)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHATML}), encoding="utf-8")
    assert describe(folder).chat_template == CHATML
    from modules.generation.local.prompt import chat_template_of
    from modules.training.samples import load_tokenizer

    assert chat_template_of(load_tokenizer(folder)) == CHATML


@pytest.mark.parametrize(
    "value", [[{"name": "default", "template": ""}, {"name": "rag", "template": CHATML}], 7, {}, "  ", None]
)
def test_a_template_entry_of_any_kind_is_read(tiny_llama_folder: Path, tmp_path: Path, value: Any) -> None:
    folder = with_files(tiny_llama_folder, tmp_path / "tiny", chat_template__jinja="")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": value}), encoding="utf-8")
    assert describe(folder).problem is None
    assert describe(folder).chat_template == (CHATML if isinstance(value, list) else None)


@pytest.fixture(scope="module")
def broken_gguf(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .gguf file whose chat template is no valid Jinja."""
    folder = tmp_path_factory.mktemp("broken")
    with_files(tiny_llama_folder, folder / "tiny", chat_template__jinja="{% for m in messages %}{{ m.content }")
    return write_gguf(folder / "tiny", folder / "broken.gguf")


def test_a_gguf_with_a_broken_template_is_loaded_and_answers_with_another(broken_gguf: Path) -> None:
    model = load(describe(broken_gguf), LoadOptions(cpu=True, ctx_size=512, threads=1), lambda progress: None)
    try:
        question = (Message("user", "Hi"),)
        with pytest.raises(UserError, match="mistake in line 1"):
            model.render(GenerationRequest(question))
        assert model.render(GenerationRequest(question, template=CHATML)).text.startswith("<|im_start|>user\nHi")
        assert list(model.stream(GenerationRequest(question, template=CHATML)))
    finally:
        model.close()


def test_a_gguf_with_an_empty_template_has_none(tiny_llama_folder: Path, tmp_path: Path) -> None:
    with_files(tiny_llama_folder, tmp_path / "tiny", chat_template__jinja=" ")
    assert describe(write_gguf(tmp_path / "tiny", tmp_path / "empty.gguf")).chat_template is None


# --- the page


@pytest.mark.parametrize("source", [GEMMA, DEAF], ids=["refuses", "ignores"])
@pytest.mark.parametrize("told", ["", "Answer in French."])
@pytest.mark.parametrize(
    "before",
    [
        (),
        ("assistant",),
        ("assistant", "user"),
        ("user", "user"),
        ("user", "assistant", "assistant"),
        ("assistant", "assistant"),
    ],
    ids=" ".join,
)
def test_no_chat_of_the_page_is_unanswerable(tmp_path: Path, source: str, told: str, before: tuple[Role, ...]) -> None:
    app = make_app(tmp_path, EchoModel(lambda request: "Oui.", chat_template=source))
    try:
        page = Page(app)
        chat = app.store.for_owner(ANYONE).chats.create(settings={"system_prompt": told} if told else {})
        last: int | None = None
        for at, role in enumerate(before):
            last = app.store.for_owner(ANYONE).messages.add(chat.id, last, role, f"<turn {at}>").id
        sent = page.say("And now?", chat.id, last)
        reply = page.finished(chat.id)["messages"][-1]
        assert (reply["state"], reply["figures"]["ending"]) == ("whole", "stop"), reply
        shown = page.ok("GET", f"/messages/{sent['reply']}/prompt")
        prompt = "".join(text for _, text in shown["pieces"])
        expected = [told, *(f"<turn {at}>" for at in range(len(before))), "And now?"]
        assert [text for text in expected if text not in prompt] == []
        strict = bool(told) or before not in ((), ("user", "assistant"))
        assert shown["moved"] is (strict if source == GEMMA else bool(told))
    finally:
        app.close()


def test_an_engine_that_died_is_shown_on_the_page(tmp_path: Path) -> None:
    dead = EchoModel(lambda request: "x" * 9, pace=0.1, fails_after=4, failure=EngineGone("The engine at far has died."))
    app = make_app(tmp_path, dead)
    try:
        page = Page(app)
        reply = page.finished(page.say("Hi")["chat"])["messages"][-1]
        assert reply["figures"]["error"] == "The engine at far has died."
        assert wait_until(lambda: app.manager.loaded is None)
        engine = page.ok("GET", "/pulse")["engine"]
        assert (engine["state"], engine["error"]) == ("asleep", "The engine at far has died.")
    finally:
        app.close()
