"""What can be done with a message: its tokens, columns beside it, the prompt, the same again, marks, differences, the map."""

from __future__ import annotations

import ast
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.generation.sampling import SamplingParams
from modules.generation.types import Token
from modules.services.preferences import Preferences
from modules.training.formats import guess_format, read_format
from modules.training.rows import read_rows
from tests.api.page.test_chats import Page, apps, text_of
from tests.fakes import EVERYTHING, EchoModel, loaded_in
from tests.in_process import events_of

assert apps  # the fixture

ROOT = Path(__file__).resolve().parents[3]


def answered(page: Page, text: str = "question", **more: Any) -> tuple[int, int]:
    """(chat, reply) of a message that was answered."""
    sent = page.say(text, **more)
    page.finished(sent["chat"])
    return sent["chat"], sent["reply"]


def last(page: Page, chat: int) -> dict[str, Any]:
    return page.finished(chat)["messages"][-1]


# --- tokens


def test_tokens_are_kept_only_while_people_look_at_them_and_stand_at_their_place(apps: Any):
    page = Page(apps(EchoModel(lambda request: "abc")))
    chat, plain = answered(page)
    assert page.ok("GET", f"/messages/{plain}/tokens")["parts"] == []
    page.ok("POST", "/token-view", {"on": True})
    assert page.ok("GET", "/pulse")["tokens"] is True
    _, reply = answered(page, chat=chat, after=plain)
    (part,) = page.ok("GET", f"/messages/{reply}/tokens")["parts"]
    assert [row[0] for row in part["tokens"]] == ["a", "b", "c"] and part["at"] == 0
    text, own, probability, others, token = part["tokens"][0]
    assert (text, own, token) == ("a", "a", 97) and probability == pytest.approx(0.6065, abs=1e-3)
    assert [other[1] for other in others][:2] == ["a", "b"] and len(others) == 8


def test_tokens_come_with_the_reply_while_it_is_written(apps: Any):
    page = Page(apps(EchoModel(lambda request: "live tokens", pace=0.01)))
    page.ok("POST", "/token-view", {"on": True})
    sent = page.say("go")
    rows: list[Any] = []
    for data in events_of(page.http, "reply", sent["reply"], tokens=True):
        if "from" in data:
            assert data["from"] == len(rows)
            rows += data["tokens"]
    assert "".join(row[0] for row in rows) == "live tokens"


def test_choosing_another_token_goes_on_from_there_as_a_version(apps: Any):
    model = EchoModel(lambda request: "abc")
    page = Page(apps(model))
    page.ok("POST", "/token-view", {"on": True})
    chat, reply = answered(page)
    model.reply = lambda request: "YZ"
    version = page.ok("POST", f"/messages/{reply}/choose", {"stretch": 0, "index": 1, "alternative": 2})["reply"]
    view = last(page, chat)
    assert view["id"] == version and view["versions"] == [reply, version] and text_of(view) == "<p>adYZ</p>"
    prompt = model.requests[-1].prompt
    assert prompt[-2:] == (ord("a"), ord("d")), "it goes on from the very tokens"
    assert "".join(map(chr, prompt[:-2])) == model.render(model.requests[0]).text  # type: ignore[arg-type]
    parts = page.ok("GET", f"/messages/{version}/tokens")["parts"]
    assert ["".join(row[0] for row in part["tokens"]) for part in parts] == ["ad", "YZ"]
    assert parts[0]["tokens"][1][3][0][1] == "b", "the alternatives of the place are still there"
    assert page.refused("POST", f"/messages/{reply}/choose", {"stretch": 0, "index": 1, "alternative": 50})[0] == 400
    assert page.refused("POST", f"/messages/{reply}/choose", {"stretch": 0, "index": 9, "alternative": 0})[0] == 409


def test_engines_that_tell_no_ids_go_on_from_the_text(apps: Any):
    class Silent(EchoModel):
        def _token(self, request: Any, letter: str, known: bool) -> Token:
            told = super()._token(request, letter, known)
            return replace(told, id=-1, alternatives=tuple(replace(other, id=-1) for other in told.alternatives))

    model = Silent(lambda request: "abc")
    page = Page(apps(model))
    page.ok("POST", "/token-view", {"on": True})
    chat, reply = answered(page)
    page.ok("POST", f"/messages/{reply}/choose", {"stretch": 0, "index": 1, "alternative": 2})
    assert text_of(last(page, chat)) == "<p>adabc</p>"
    assert model.render(model.requests[-1]).text.endswith("<|im_start|>assistant\nad")


def test_tokens_can_be_computed_afterwards_where_the_model_can(apps: Any):
    page = Page(apps(EchoModel(lambda request: "abc")))
    chat, reply = answered(page)
    assert page.ok("GET", f"/messages/{reply}/tokens")["computable"] is True
    (part,) = page.ok("POST", f"/messages/{reply}/tokens")["parts"]
    assert [row[0] for row in part["tokens"]] == ["a", "b", "c"]
    page.app.manager.replace("poor", lambda report: EchoModel(name="echo", capabilities=_without("prompt_logprobs")))
    _, other = answered(page, chat=chat, after=reply)
    assert page.ok("GET", f"/messages/{other}/tokens") == {"parts": [], "computable": False}
    assert "regenerate this one" in page.refused("POST", f"/messages/{other}/tokens")[1]


def _without(name: str) -> Any:
    return replace(EVERYTHING, **{name: False})


# --- columns


def test_columns_answer_at_once_and_one_is_kept(apps: Any):
    model = EchoModel(lambda request: f"by {request.adapter}, {request.sampling.temperature:g}", pace=0.002)
    model.load_adapter("tuned", "")
    page = Page(apps(model))
    columns = [{"adapter": ""}, {"adapter": "tuned"}, {"preset": "Deterministic", "template": "ChatML"}]
    made = page.ok("POST", "/compare", {"content": "question", "columns": columns})
    assert len(made["replies"]) == 3 and len({request.sampling.seed for request in model.requests}) == 1
    view = page.view(made["chat"])
    while any(column["state"] == "streaming" for column in view["columns"]):
        time.sleep(0.01)
        view = page.view(made["chat"])
    assert [column["id"] for column in view["columns"]] == made["replies"] and len(view["messages"]) == 2
    texts = [text_of(column) for column in view["columns"]]
    assert texts[:2] == ["<p>by None, 0.7</p>", "<p>by tuned, 0.7</p>"] and texts[2].startswith("<p>by None")
    assert view["columns"][2]["extra"]["compare"]["template"] == "ChatML"
    page.ok("POST", f"/messages/{made['replies'][1]}/keep")
    view = page.view(made["chat"])
    assert view["columns"] == [] and view["messages"][-1]["id"] == made["replies"][1]
    assert view["messages"][-1]["versions"] == made["replies"]
    page.refused("POST", f"/messages/{made['replies'][1]}/keep")


def test_a_question_that_is_there_is_answered_in_columns_and_keeping_one_stops_the_others(apps: Any):
    model = EchoModel(lambda request: "first")
    page = Page(apps(model))
    chat, reply = answered(page)
    model.reply, model.pace = lambda request: "x" * 500, 0.01
    made = page.ok("POST", "/compare", {"chat": chat, "after": reply, "columns": [{}, {}]})
    page.ok("POST", f"/messages/{made['replies'][0]}/keep")
    assert page.app.store.for_owner("local").messages.get(made["replies"][1]).state == "cut"
    assert page.app.store.for_owner("local").messages.get(made["replies"][0]).state == "streaming"
    page.ok("POST", f"/replies/{made['replies'][0]}/stop")


def test_a_comparison_that_cannot_begin_leaves_nothing_behind(apps: Any):
    page = Page(apps(EchoModel(lambda request: "x" * 500, pace=0.05)))
    for columns in (
        [{}],
        [{}] * 4,
        [{}, {"adapter": "none such"}],
        [{}, {"preset": "none such"}],
        [{}, {"template": "none such"}],
    ):
        page.refused("POST", "/compare", {"content": "question", "columns": columns})
    page.refused("POST", "/compare", {"columns": [{}, {}]})
    assert page.ok("GET", "") == []
    assert all(stream.closed for stream in loaded_in(page.app.manager).streams)


# --- prompts


def test_counting_wakes_no_model(apps: Any):
    page = Page(apps(EchoModel(context_length=2000)))
    assert page.app.manager.unload_idle(lambda report: EchoModel())
    assert page.refused("POST", "/context", {"content": "12345"}) == (
        503,
        "The model is not loaded now: a message loads it again.",
    )
    assert page.app.manager.status.state == "asleep"


def test_the_context_is_counted_before_sending_with_the_draft(apps: Any):
    page = Page(apps(EchoModel(context_length=2000)))
    assert page.ok("POST", "/context", {})["tokens"] == 0
    chat, reply = answered(page)
    without = page.ok("POST", "/context", {"chat": chat, "after": reply})
    counted = page.ok("POST", "/context", {"chat": chat, "after": reply, "content": "12345"})
    extra = len("<|im_start|>user\n12345<|im_end|>\n")
    assert counted["tokens"] == without["tokens"] + extra
    assert counted["context"] == 2000 and counted["reply"] == 512 and counted["dropped"] == 0


def test_the_exact_prompt_is_shown_with_what_was_left_out(apps: Any):
    page = Page(apps(EchoModel(lambda request: "yes", context_length=200)))
    chat, reply = answered(page, "first question " + "x" * 60, settings={"system_prompt": "Be brief."})
    shown = page.ok("GET", f"/messages/{reply}/prompt")
    assert (
        "".join(text for _, text in shown["pieces"])
        == loaded_in(page.app.manager).render(loaded_in(page.app.manager).requests[0]).text
    )
    assert [kind for kind, _ in shown["pieces"]] == ["template", "system", "template", "user", "template"]
    assert shown["problem"] is None and shown["left_out"] == [] and len(shown["ids"]) == shown["tokens"]
    draft = page.ok("POST", "/prompt", {"chat": chat, "after": reply, "content": "second " + "y" * 60})
    assert draft["dropped"] and draft["left_out"][0][1].startswith(("first", "Be brief"))
    page.refused("POST", "/prompt", {})


def test_a_template_that_fails_its_test_is_told(apps: Any):
    model = EchoModel(chat_template="{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}bot:")
    page = Page(apps(model))
    assert page.ok("GET", "/pulse")["engine"]["problem"] == "It leaves out what the model said."
    assert Page(apps(EchoModel())).ok("GET", "/pulse")["engine"]["problem"] is None


def test_the_model_writes_the_users_part(apps: Any):
    model = EchoModel(lambda request: "What next?")
    page = Page(apps(model))
    chat, reply = answered(page, settings={"reply_start": "So: "})
    answer = page.http.post("/chats/impersonate", json={"chat": chat, "after": reply, "content": "Well, "})
    assert "".join(json.loads(line).get("text", "") for line in answer.text.splitlines()) == "What next?"
    assert model.render(model.requests[-1]).text.endswith("<|im_start|>user\nWell, ")
    page.refused("POST", "/impersonate", {"content": "x"})
    assert len(page.view(chat)["messages"]) == 2, "nothing is kept of it"


def test_messages_are_put_in_without_an_answer(apps: Any):
    page = Page(apps(EchoModel()))
    said = page.ok("POST", "/add", {"content": "I say", "role": "user"})
    page.ok("POST", "/add", {"chat": said["chat"], "after": said["message"], "content": "You say", "role": "assistant"})
    view = page.view(said["chat"])
    assert [(message["role"], text_of(message)) for message in view["messages"]] == [
        ("user", "I say"),
        ("assistant", "<p>You say</p>"),
    ]
    assert loaded_in(page.app.manager).requests == []
    page.refused("POST", "/add", {"content": " ", "role": "user"})
    page.refused("POST", "/add", {"content": "x", "role": "system"})


# --- made again


def test_a_reply_is_made_again_as_it_was_whatever_is_set_now(apps: Any):
    model = EchoModel(lambda request: "the same")
    page = Page(apps(model))
    chat, reply = answered(page, settings={"system_prompt": "Be brief."})
    page.ok("PATCH", f"/{chat}", {"settings": {"system_prompt": "Be long.", "reply_start": "Oh"}})
    page.ok("POST", "/preset", {"name": "Deterministic"})
    again = page.ok("POST", f"/messages/{reply}/again")["reply"]
    view = last(page, chat)
    assert model.requests[1] == model.requests[0]
    assert view["id"] == again and view["again"] == {"of": reply, "same_prompt": True, "same_text": True}
    model.reply = lambda request: "another"
    page.ok("POST", f"/messages/{again}/again")
    assert last(page, chat)["again"] == {"of": again, "same_prompt": True, "same_text": False}


def test_what_a_reply_was_continued_or_branched_by_is_made_again(apps: Any):
    model = EchoModel(lambda request: "abc")
    page = Page(apps(model))
    page.ok("POST", "/token-view", {"on": True})
    chat, reply = answered(page)
    page.ok("POST", f"/messages/{reply}/continue")
    page.finished(chat)
    again = page.ok("POST", f"/messages/{reply}/again")["reply"]
    assert text_of(last(page, chat)) == "<p>abcabc</p>" and model.requests[-1] == model.requests[-2] and again != reply
    page.ok("POST", f"/messages/{reply}/choose", {"stretch": 0, "index": 1, "alternative": 2})
    chosen = last(page, chat)
    page.ok("POST", f"/messages/{chosen['id']}/again")
    assert last(page, chat)["again"]["same_text"] and model.requests[-1] == model.requests[-2]


def test_only_what_is_known_can_be_made_again(apps: Any):
    page = Page(apps(EchoModel()))
    _, reply = answered(page)
    own = page.ok("POST", f"/messages/{reply}/edit", {"content": "my words"})["reply"]
    assert "not known" in page.refused("POST", f"/messages/{own}/again")[1]
    page.app.manager.replace("other", lambda report: EchoModel(name="other"))
    assert "Load echo first" in page.refused("POST", f"/messages/{reply}/again")[1]


def test_programs_ask_for_the_same(apps: Any):
    page = Page(apps(EchoModel()))
    _, reply = answered(
        page, 'it\'s *me*\n"you" $HOME', settings={"system_prompt": "Be brief.", "template": "ChatML", "reply_start": "So "}
    )
    programs = page.ok("GET", f"/messages/{reply}/programs?address=http://here/v1")
    body = json.loads(programs["curl"].split("-d '", 1)[1].rsplit("'", 1)[0].replace("'\"'\"'", "'"))
    assert [turn["role"] for turn in body["messages"]] == ["system", "user", "assistant"]
    assert body["messages"][1]["content"] == 'it\'s *me*\n"you" $HOME'
    assert (body["template"], body["continue_final_message"], body["top_k"]) == ("ChatML", True, 20)
    assert body["seed"] == page.app.store.for_owner("local").messages.get(reply).figures.seed
    ast.parse(programs["python"])
    assert "http://here/v1/chat/completions" in programs["curl"] and "base_url='http://here/v1'" in programs["python"]


# --- versions, the tree, marks


def test_versions_differ_word_by_word_and_the_map_shows_all(apps: Any):
    replies = iter(["a red fox runs", "a blue fox runs"])
    page = Page(apps(EchoModel(lambda request: next(replies))))
    chat, reply = answered(page)
    other = page.ok("POST", f"/messages/{reply}/regenerate")["reply"]
    page.finished(chat)
    steps = page.ok("GET", f"/messages/{reply}/difference/{other}")
    assert steps == [["same", "a "], ["out", "red"], ["in", "blue"], ["same", " fox runs"]]
    shown = page.ok("GET", f"/{chat}/map")
    assert [message["words"] for message in shown["messages"]] == ["question", "a red fox runs", "a blue fox runs"]
    assert shown["path"] == [shown["messages"][0]["id"], other] and shown["messages"][1]["parent"] == shown["path"][0]


def test_marks_become_data_sets_that_training_reads(apps: Any):
    replies = iter(["good answer", "bad answer"])
    page = Page(apps(EchoModel(lambda request: next(replies))))
    chat, good = answered(page, settings={"system_prompt": "Be brief."})
    bad = page.ok("POST", f"/messages/{good}/regenerate")["reply"]
    page.finished(chat)
    assert "Nothing is marked" in page.refused("POST", "/marks/dataset", {"kind": "examples", "name": "mine"})[1]
    page.ok("POST", f"/messages/{good}/good", {"on": True})
    page.ok("POST", f"/messages/{good}/better", {"rejected": bad})
    assert page.ok("GET", "/marks") == {"examples": 1, "preferences": 1, "admin": True}
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question"}]
    chosen, rejected = {"role": "assistant", "content": "good answer"}, {"role": "assistant", "content": "bad answer"}
    assert [json.loads(line) for line in page.http.get("/chats/marks/preferences.jsonl").text.splitlines()] == [
        {"prompt": before, "chosen": [chosen], "rejected": [rejected]}
    ]
    saved = page.ok("POST", "/marks/dataset", {"kind": "examples", "name": "mine"})
    assert saved == {"name": "mine.jsonl", "rows": 1}
    rows = read_rows(page.app.training.places.datasets, "mine")
    example = read_format(ROOT / "training" / "formats", "messages").read_row(rows.rows[0][1])
    assert [(turn.role, turn.content) for turn in example.messages] == [  # type: ignore[union-attr]
        ("system", "Be brief."),
        ("user", "question"),
        ("assistant", "good answer"),
    ]
    page.ok("POST", "/marks/dataset", {"kind": "preferences", "name": "pairs"})
    rows = read_rows(page.app.training.places.datasets, "pairs")
    name = guess_format(ROOT / "training" / "formats", rows.columns, rows.rows[0][1])
    assert name == "preferences"
    pair: Any = read_format(ROOT / "training" / "formats", name).read_row(rows.rows[0][1])
    assert [side.messages[-1].content for side in (pair.chosen, pair.rejected)] == ["good answer", "bad answer"]
    assert page.refused("POST", "/marks/dataset", {"kind": "examples", "name": "mine"})[0] == 409
    assert page.refused("POST", "/marks/dataset", {"kind": "examples", "name": "../x"})[0] == 400
    page.ok("POST", f"/messages/{bad}/better", {"rejected": good})
    assert page.ok("GET", "/marks")["preferences"] == 1, "the other way round takes the first away"
    page.ok("POST", f"/messages/{good}/good", {"on": False})
    page.ok("DELETE", f"/messages/{good}")
    assert page.ok("GET", "/marks")["examples"] == 0 and page.ok("GET", "/marks")["preferences"] == 0


def test_only_versions_of_one_reply_are_preferred_and_only_ones_own(apps: Any):
    app = apps(EchoModel(), gradio_auth="ann:ann-password,ben:ben-password")
    ann, ben = Page(app, "ann"), Page(app, "ben")
    chat, reply = answered(ann)
    question = ann.view(chat)["messages"][0]["id"]
    _, other = answered(ann, "another chat")
    ann.refused("POST", f"/messages/{reply}/better", {"rejected": other})
    ann.refused("POST", f"/messages/{question}/good", {"on": True})
    for path in (
        f"/messages/{reply}/tokens",
        f"/messages/{reply}/prompt",
        f"/{chat}/map",
        f"/messages/{reply}/programs?address=x",
    ):
        assert ben.refused("GET", path)[0] == 404
    for path, body in (
        (f"/messages/{reply}/again", {}),
        (f"/messages/{reply}/good", {"on": True}),
        (f"/messages/{reply}/keep", {}),
    ):
        assert ben.refused("POST", path, body)[0] == 404
    assert ben.refused("POST", "/marks/dataset", {"kind": "examples", "name": "x"})[0] == 403


# --- with real tokens


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_real_models_run_again_exactly_and_go_on_from_a_chosen_token(
    apps: Any, kind: str, tiny_llama_folder: Path, tiny_gguf: Path
):
    app = apps()
    source = tiny_llama_folder if kind == "folder" else tiny_gguf
    (app.models.folder / source.name).symlink_to(source)
    app.load_model(source.name)
    page = Page(app)
    page.ok("POST", "/token-view", {"on": True})
    Preferences(app, "local").set_sampling(SamplingParams(max_tokens=48, temperature=1.5, ban_eos=True, seed=5), None)
    chat, reply = answered(page, "Tell me.")
    content = app.store.for_owner("local").messages.get(reply).content
    parts = page.ok("GET", f"/messages/{reply}/tokens")["parts"]
    assert "".join(row[0] for part in parts for row in part["tokens"]) == content
    page.ok("POST", f"/messages/{reply}/again")
    assert last(page, chat)["again"] == {"of": reply, "same_prompt": True, "same_text": True}
    rows = parts[0]["tokens"]
    index, other = next(
        (index, other)
        for index, row in enumerate(rows[3:], 3)
        for other in row[3]
        if other[0] != row[4] and other[1].strip() and not other[1].startswith(("<", "\\x"))
    )
    version = page.ok(
        "POST", f"/messages/{reply}/choose", {"stretch": 0, "index": index, "alternative": rows[index][3].index(other)}
    )["reply"]
    page.finished(chat)
    kept = app.store.for_owner("local").messages.get(version).content
    assert kept.startswith("".join(row[0] for row in rows[:index]) + other[1])
    if kind == "folder":
        asked = page.ok("POST", f"/messages/{reply}/tokens")["parts"][0]["tokens"]
        if [row[4] for row in asked] == [row[4] for row in rows]:
            assert all(abs(one[2] - two[2]) < 0.02 for one, two in zip(asked, rows, strict=True)), "computed is as recorded"
