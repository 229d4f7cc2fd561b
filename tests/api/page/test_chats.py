"""What the chat view's script can ask for: actions on one's own chats, and replies as they grow."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from modules.access import COOKIE
from modules.api import errors, guard
from modules.api.page import chats
from modules.app import App
from modules.errors import Unavailable
from modules.generation.types import ModelStatus
from tests.fakes import EchoModel
from tests.in_process import events_of, make_app

Web = tuple[FastAPI, App]
"""The routes of the page, and the App that they hold."""
_in_use: WeakKeyDictionary[App, Web] = WeakKeyDictionary()
_idle: list[Web] = []


def web_over(app: App) -> FastAPI:
    """The routes of the page over `app`. Making them takes half a second: those of an App that is closed (`apps`) serve another."""
    if app not in _in_use:
        if _idle:
            web, held = _idle.pop()
            held.__dict__ = app.__dict__  # is `app` from here on
        else:
            web, held = FastAPI(), copy(app)
            held.__dict__ = app.__dict__
            errors.install(web)
            web.include_router(chats.router(held))
            web.add_middleware(guard.SiteGuard)
        _in_use[app] = web, held
    return _in_use[app][0]


class Page:
    """A browser's calls to one app."""

    def __init__(self, app: App, user: str | None = None) -> None:
        self.app = app
        self.http = TestClient(web_over(app))
        if user:
            self.http.cookies[COOKIE] = app.access.log_in(user, f"{user}-password", "test")

    def ok(self, method: str, path: str, body: object = None) -> Any:
        answer = self.http.request(method, f"/chats{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        answer = self.http.request(method, f"/chats{path}", json=body)
        assert answer.status_code >= 400
        return answer.status_code, answer.json()["error"]["message"]

    def say(self, text: str, chat: int | None = None, after: int | None = None, **more: object) -> dict[str, int]:
        return self.ok("POST", "/send", {"content": text, "chat": chat, "after": after, **more})

    def view(self, chat: int, **body: object) -> dict[str, Any]:
        return self.ok("POST", f"/{chat}/view", body)

    def finished(self, chat: int) -> dict[str, Any]:
        """The chat once nothing is being written in it."""
        deadline = time.monotonic() + 10
        while True:
            view = self.view(chat)
            if all(message["state"] != "streaming" for message in view["messages"]):
                return view
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def events(self, message_id: int, position: int = 0) -> list[Any]:
        """All events of a reply to its end."""
        return list(events_of(self.http, "reply", message_id, after=str(position)))


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[Any]:
    made: list[App] = []

    def make(model: EchoModel | None = None, **options: object) -> App:
        made.append(make_app(tmp_path / str(len(made)), model, **options))
        return made[-1]

    yield make
    for app in made:
        app.close()
        if app in _in_use:
            _idle.append(_in_use.pop(app))


def text_of(message: dict[str, Any]) -> str:
    return message["text"] if "text" in message else "".join(block[2] for block in message["blocks"])


def test_the_first_message_makes_a_chat_and_a_reply(apps: Any):
    page = Page(apps(EchoModel()))
    sent = page.say("Hello *there*")
    view = page.finished(sent["chat"])
    assert [message["role"] for message in view["messages"]] == ["user", "assistant"]
    assert text_of(view["messages"][0]) == "Hello *there*"
    assert text_of(view["messages"][1]) == "<p>Hello <em>there</em></p>"
    assert [entry["title"] for entry in page.ok("GET", "")] == ["Hello there"]


def test_nothing_is_kept_of_a_message_that_cannot_be_answered(apps: Any):
    page = Page(apps())
    status, message = page.refused("POST", "/send", {"content": "Hello"})
    assert status == 503 and "No model is loaded" in message
    page = Page(apps(EchoModel()))
    assert page.refused("POST", "/send", {"content": "  "})[0] == 400
    assert page.ok("GET", "") == []


def test_a_reply_arrives_in_pieces_and_ends_with_the_stored_message(apps: Any):
    page = Page(apps(EchoModel(lambda request: "One.\n\nTwo, and more.", pace=0.02)))
    sent = page.say("go")
    events = page.events(sent["reply"])
    over = events[-1]["over"]
    assert over["state"] == "whole" and over["figures"]["tokens"] == 20
    changes = [data for data in events if isinstance(data, list) or "b" in data]
    assert len(changes) > 3
    assert "blocks" not in over, "the browser has them already"
    assert page.events(sent["reply"])[-1]["over"]["blocks"], "a reader who comes later gets the whole text"


def test_a_reader_who_comes_back_gets_what_is_new_since_a_position(apps: Any):
    page = Page(apps(EchoModel(lambda request: "First paragraph.\n\nSecond paragraph, still growing.", pace=0.01)))
    sent = page.say("go")
    while (reply := page.app.replies.for_owner("local").get(sent["reply"])) and len(reply.progress.text) < 30:
        time.sleep(0.005)
    blocks = [data for data in page.events(sent["reply"], position=18) if "b" in data]
    assert all(change.get("at", 18) >= 18 for change in blocks)
    assert "First" not in json.dumps(blocks)


def test_regenerate_edit_and_select_make_and_show_versions(apps: Any):
    replies = iter(["one", "two", "three"])
    page = Page(apps(EchoModel(lambda request: next(replies))))
    sent = page.say("question")
    page.finished(sent["chat"])
    again = page.ok("POST", f"/messages/{sent['reply']}/regenerate")["reply"]
    view = page.finished(sent["chat"])
    assert view["messages"][1]["versions"] == [sent["reply"], again]
    assert text_of(view["messages"][1]) == "<p>two</p>"
    page.ok("POST", f"/messages/{sent['reply']}/select")
    assert text_of(page.view(sent["chat"])["messages"][1]) == "<p>one</p>"
    question = view["messages"][0]["id"]
    page.ok("POST", f"/messages/{question}/edit", {"content": "better question"})
    view = page.finished(sent["chat"])
    assert [text_of(message) for message in view["messages"]] == ["better question", "<p>three</p>"]
    assert len(view["messages"][0]["versions"]) == 2
    page.ok("POST", f"/messages/{view['messages'][1]['id']}/edit", {"content": "my own words"})
    view = page.view(sent["chat"])
    assert text_of(view["messages"][1]) == "<p>my own words</p>" and view["messages"][1]["figures"]["edited"]


def test_continue_goes_on_in_the_same_message(apps: Any):
    model = EchoModel(lambda request: "again")
    page = Page(apps(model))
    sent = page.say("question")
    page.finished(sent["chat"])
    assert page.ok("POST", f"/messages/{sent['reply']}/continue")["reply"] == sent["reply"]
    view = page.finished(sent["chat"])
    assert text_of(view["messages"][1]) == "<p>againagain</p>"
    assert view["messages"][1]["figures"]["tokens"] == 10
    assert model.requests[-1].continue_reply


def test_stop_ends_a_reply_and_keeps_it(apps: Any):
    page = Page(apps(EchoModel(lambda request: "x" * 1000, pace=0.01)))
    sent = page.say("go")
    while not (reply := page.app.replies.for_owner("local").get(sent["reply"])) or not reply.progress.text:
        time.sleep(0.005)
    status, message = page.refused("POST", "/send", {"content": "more", "chat": sent["chat"], "after": sent["reply"]})
    assert status == 400 and "still being written" in message
    assert page.ok("POST", f"/replies/{sent['reply']}/stop") == {"stopped": True}
    assert page.view(sent["chat"])["messages"][1]["state"] == "cut"
    assert page.ok("POST", f"/replies/{sent['reply']}/stop") == {"stopped": False}


def test_deleting_a_message_or_chat_ends_the_reply_being_written_there(apps: Any):
    model = EchoModel(lambda request: "x" * 1000, pace=0.01)
    page = Page(apps(model))
    sent = page.say("go")
    question = page.view(sent["chat"])["messages"][0]["id"]
    page.ok("DELETE", f"/messages/{question}")
    assert model.streams[-1].closed and page.view(sent["chat"])["messages"] == []
    other = page.say("go")
    page.ok("DELETE", f"/{other['chat']}")
    assert model.streams[-1].closed
    page.ok("POST", f"/{other['chat']}/restore")
    assert len(page.view(other["chat"])["messages"]) == 2


def test_what_the_browser_has_is_not_sent_again(apps: Any):
    page = Page(apps(EchoModel()))
    sent = page.say("hello")
    view = page.finished(sent["chat"])
    known = {message["id"]: message["changed"] for message in view["messages"]}
    again = page.view(sent["chat"], known=known)
    assert all("text" not in message and "blocks" not in message for message in again["messages"])
    assert [message["id"] for message in page.view(sent["chat"], limit=1)["messages"]] == [sent["reply"]]
    assert page.view(sent["chat"], limit=1)["earlier"] == 1


def test_the_settings_of_a_chat_reach_the_model(apps: Any):
    model = EchoModel()
    page = Page(apps(model))
    sent = page.say("hello", settings={"system_prompt": "Be brief."})
    view = page.finished(sent["chat"])
    assert view["settings"]["system_prompt"] == "Be brief."
    page.ok("PATCH", f"/{sent['chat']}", {"settings": {"system_prompt": "Be long.", "template": "Vicuna-v1.1"}})
    page.say("and?", sent["chat"], sent["reply"])
    page.finished(sent["chat"])
    prompt = model.requests[-1].prompt
    assert prompt[0].content == "Be long." and "USER:" in (model.requests[-1].template or "")  # type: ignore[union-attr]
    assert page.refused("PATCH", f"/{sent['chat']}", {"settings": {"template": "no such"}})[0] == 404
    assert page.refused("PATCH", f"/{sent['chat']}", {"settings": {"adapter_strength": 9}})[0] == 400


def test_a_model_without_a_template_is_told_and_one_can_be_chosen(apps: Any):
    model = EchoModel(name="mystery", chat_template=None)
    page = Page(apps(model))
    assert page.ok("GET", "/pulse")["engine"]["template"] is None
    status, message = page.refused("POST", "/send", {"content": "hello"})
    assert status == 400 and "no chat template" in message
    sent = page.say("hello", settings={"template": "ChatML"})
    page.finished(sent["chat"])
    fitting = Page(apps(EchoModel(name="vicuna-7b-v1.1", chat_template=None)))
    assert fitting.ok("GET", "/pulse")["engine"]["template"] == "Vicuna-v1.1"
    fitting.finished(fitting.say("hello")["chat"])


def test_a_preset_is_remembered_and_used(apps: Any):
    model = EchoModel()
    page = Page(apps(model))
    assert page.ok("GET", "/pulse")["preset"] == "simple-1"
    page.ok("POST", "/preset", {"name": "Big O"})
    assert page.ok("GET", "/pulse")["preset"] == "Big O"
    page.finished(page.say("hello")["chat"])
    assert model.requests[-1].sampling.typical_p == 0.68
    assert page.refused("POST", "/preset", {"name": "nope"})[0] == 404


def test_users_see_and_touch_only_their_own(apps: Any):
    app = apps(EchoModel(lambda request: "x" * 500, pace=0.01), gradio_auth="ann:ann-password,bob:bob-password")
    ann, bob, stranger = Page(app, "ann"), Page(app, "bob"), Page(app)
    sent = ann.say("secret")
    assert bob.ok("GET", "") == [] and bob.ok("GET", "?search=secret") == []
    assert bob.refused("POST", f"/{sent['chat']}/view", {})[0] == 404
    assert bob.refused("POST", f"/replies/{sent['reply']}/stop")[0] == 404
    assert bob.events(sent["reply"]) == [{"error": "There is no such chat."}]
    assert bob.refused("GET", f"/messages/{sent['reply']}")[0] == 404
    assert bob.refused("POST", "/send", {"content": "x", "chat": sent["chat"], "after": sent["reply"]})[0] == 404
    assert bob.ok("GET", f"/pulse?chat={sent['chat']}")["chat"] is None
    assert app.replies.for_owner("ann").get(sent["reply"])
    for method, path in (
        ("GET", ""),
        ("POST", "/send"),
        ("GET", "/events?topics={}"),
        ("GET", "/static/chat.css"),
    ):
        assert stranger.refused(method, path, {"content": "x"} if method == "POST" else None)[0] == 401
    assert bob.refused("POST", "/model", {"name": "x"})[0] == 403, "only administrators change the model"
    assert bob.refused("POST", "/downloads", {"name": "a/b"})[0] == 403


def test_other_sites_cannot_act_through_a_visitors_browser(apps: Any):
    page = Page(apps(EchoModel()))
    answer = page.http.post("/chats/send", json={"content": "x"}, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    answer = page.http.post("/chats/send", content='{"content": "x"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code >= 400
    assert page.ok("GET", "") == []


@pytest.mark.parametrize("name", ["../page.py", "..%2fpage.py", "/etc/passwd", "nothing.js", ""])
def test_only_the_pages_own_files_are_served(apps: Any, name: str):
    page = Page(apps())
    assert page.http.get(f"/chats/static/{name}").status_code in (404, 405)
    assert "text/javascript" in page.http.get("/chats/static/main.js").headers["content-type"]


def test_what_the_server_runs_is_told_without_addresses_or_paths(apps: Any):
    app = apps(EchoModel())
    facts = json.dumps(Page(app).ok("GET", "/server"))
    assert "echo" in facts and str(app.root) not in facts and str(Path.home()) not in facts


def test_what_others_have_answered_to_is_continued_as_a_version(apps: Any):
    replies = iter(["one", "two", " and more"])
    page = Page(apps(EchoModel(lambda request: next(replies))))
    sent = page.say("question")
    page.finished(sent["chat"])
    page.say("next question", chat=sent["chat"], after=sent["reply"])
    page.finished(sent["chat"])
    version = page.ok("POST", f"/messages/{sent['reply']}/continue")["reply"]
    view = page.finished(sent["chat"])
    assert version != sent["reply"] and text_of(view["messages"][1]) == "<p>one and more</p>"
    page.ok("POST", f"/messages/{sent['reply']}/select")
    assert [text_of(message) for message in page.view(sent["chat"])["messages"]][1:] == [
        "<p>one</p>",
        "next question",
        "<p>two</p>",
    ]


def test_a_reply_keeps_what_made_it(apps: Any):
    app = apps(EchoModel(lambda request: "yes"))
    page = Page(app)
    sent = page.say("question", settings={"system_prompt": "Be brief."})
    page.finished(sent["chat"])
    page.ok("POST", f"/messages/{sent['reply']}/continue")
    page.finished(sent["chat"])
    kept = app.store.for_owner("local").messages.get(sent["reply"])
    first, second = kept.extra["runs"]
    assert first["settings"] == second["settings"] == {"system_prompt": "Be brief."}
    assert (first["model"], first["preset"], second["at"]) == ("echo", "simple-1", 3)
    assert first["sampling"]["seed"] >= 0 and first["sampling"]["top_k"] == 20
    assert len(kept.figures.prompt_hash or "") == 16
    assert "runs" not in page.view(sent["chat"])["messages"][1]["extra"]


def test_the_models_tab_is_told_of_the_replies_and_the_cache(apps: Any, monkeypatch: pytest.MonkeyPatch):
    model = EchoModel()
    page = Page(apps(model))
    busy = ModelStatus(3, 1, cache_bytes=10, cache_limit=20, cached_tokens=5)
    monkeypatch.setattr(model, "status", lambda: busy)
    assert page.ok("GET", "/models")["load"] == vars(busy)
    monkeypatch.setattr(model, "status", _its_process_is_gone)
    assert page.ok("GET", "/models")["load"] is None


def _its_process_is_gone() -> ModelStatus:
    raise Unavailable("gone")
