"""A disk that is full, or loses its power, takes nothing away that was shown as kept; and says so by its name."""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.app import App
from modules.chats import replies
from modules.chats.message_table import MessageTable
from modules.chats.store import ChatStore
from modules.errors import DiskFull, NotFound
from modules.generation.sampling import SamplingParams
from modules.library import paths
from modules.services.preferences import Preferences
from tests.fakes import EchoModel, loaded_in
from tests.in_process import events_of, make_app, serving

pytestmark = pytest.mark.slow


def fill(store: ChatStore) -> None:
    """As a full disk does: SQLite gets no further page."""
    with store.database.reading() as db:
        db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
        free = db.execute("PRAGMA freelist_count").fetchone()[0]
    assert free == 0


def empty(store: ChatStore) -> None:
    with store.database.reading() as db:
        db.execute("PRAGMA max_page_count = 4294967294")


LONG = "a long text " * 2000


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = make_app(tmp_path, EchoModel(lambda request: LONG, context_length=10**6))
    yield app
    empty(app.store)
    app.replies.close()
    app.close()


def until(condition: Any) -> None:
    waiting = threading.Event()
    for _ in range(3000):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come to that")


def test_messages_are_on_the_disk_when_they_were_taken(tmp_path):
    """SQLite's FULL, in which a commit returns when the disk has it."""
    store = ChatStore(tmp_path / "chats.sqlite3")
    with store.database.reading() as db:
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
    store.close()


def test_a_full_disk_is_named_and_nothing_is_half_kept(app):
    with serving(app) as url:
        chat = httpx.post(url + "/chats/send", json={"content": "before"}).json()["chat"]
        until(lambda: not app.replies._running)
        before = app.store.for_owner("local").messages.tree(chat)
        fill(app.store)
        refused = httpx.post(url + "/chats/send", json={"chat": chat, "after": before[-1].id, "content": LONG * 5})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
        assert str(app.data) in refused.json()["error"]["message"]
        begun = httpx.post(url + "/chats/send", json={"content": LONG * 5})
        assert begun.status_code == 507
        page = httpx.patch(url + "/chats/writing/notebook", json={"revision": 0, "text": LONG * 5})
        assert page.status_code == 507
        assert app.store.for_owner("local").messages.tree(chat) == before
        assert len(app.store.for_owner("local").chats.page()) == 1
        empty(app.store)
        sent = httpx.post(url + "/chats/send", json={"chat": chat, "after": before[-1].id, "content": LONG * 5})
        assert sent.status_code == 200


def test_a_question_without_room_for_its_reply_is_not_kept(app, monkeypatch):
    """The steps of one message are one transaction."""
    add = MessageTable.add

    def full_for_replies(self: MessageTable, chat_id: int, parent: int | None, role: Any, *given: Any, **more: Any) -> Any:
        if role == "assistant":
            raise DiskFull("here")
        return add(self, chat_id, parent, role, *given, **more)

    monkeypatch.setattr(MessageTable, "add", full_for_replies)
    with serving(app) as url:
        assert httpx.post(url + "/chats/send", json={"content": "hello"}).status_code == 507
    assert app.store.for_owner("local").chats.page() == []


def held_reply(app: App, url: str) -> tuple[replies.Reply, int]:
    """(a reply that has come to its end on a disk that became full meanwhile, the number of its message)."""
    full = threading.Event()
    loaded_in(app.manager).reply = lambda request: LONG if full.wait(60) else ""
    Preferences(app, "local").set_sampling(SamplingParams(max_tokens=100_000), None)
    id_ = httpx.post(url + "/chats/send", json={"content": "hello"}).json()["reply"]
    fill(app.store)
    full.set()
    reply = app.replies.for_owner("local").get(id_)
    assert reply is not None
    until(lambda: reply.progress.unsaved and reply.progress.state == "whole")
    return reply, id_


def test_a_reply_that_does_not_fit_is_held_until_there_is_room(app, monkeypatch):
    monkeypatch.setattr(replies, "RETRY_SECONDS", 0.05)
    with serving(app) as url:
        reply, id_ = held_reply(app, url)
        assert str(app.data) in reply.progress.unsaved
        assert reply.progress.phase != "over"
        with httpx.Client(base_url=url, timeout=30) as client:
            told: dict[str, Any] = {}
            for told in events_of(client, "reply", id_):
                if "unsaved" in told:
                    empty(app.store)
        assert "over" in told
        assert app.store.for_owner("local").messages.get(id_).content == LONG
        assert app.store.for_owner("local").messages.get(id_).state == "whole"
        assert app.store.for_owner("local").messages.get(id_).figures.error is None


def test_a_server_that_ends_does_not_wait_for_room(app):
    with serving(app) as url:
        held_reply(app, url)
        app.replies.close()
        until(lambda: not app.replies._running)


def test_a_transaction_that_cannot_be_kept_is_over(tmp_path):
    """A commit that fails leaves nothing open, in which all that follows would be lost."""
    store = ChatStore(tmp_path / "chats.sqlite3")
    chat = store.for_owner("ann").chats.create()
    fill(store)
    with pytest.raises(DiskFull):
        store.for_owner("ann").messages.add(chat.id, None, "user", LONG * 10)
    with store.database.reading() as db:
        assert not db.in_transaction
    empty(store)
    store.for_owner("ann").messages.add(chat.id, None, "user", "small")
    store.close()
    again = ChatStore(tmp_path / "chats.sqlite3")
    assert [message.content for message in again.for_owner("ann").messages.tree(chat.id)] == ["small"]
    again.close()


def test_one_transaction_within_another_is_part_of_it(tmp_path):
    store = ChatStore(tmp_path / "chats.sqlite3")
    with pytest.raises(NotFound), store.database.transaction():
        store.for_owner("ann").chats.create()
        store.for_owner("ann").chats.get(10**30)
    assert store.for_owner("ann").chats.page() == []
    with pytest.raises(sqlite3.OperationalError), store.database.transaction() as db:
        db.execute("no SQL")
    store.close()


def test_files_that_do_not_fit_are_told_too(app, monkeypatch):
    def full(path: Path, text: str, mode: int = 0) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("modules.library.prompts.write_text", full)
    assert paths.write_text is not full
    with serving(app) as url:
        reply = httpx.post(url + "/chats/writing/prompts", json={"name": "a", "text": "x"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (507, "disk_full")
    assert "a.txt" in reply.json()["error"]["message"]


def test_who_cannot_log_in_for_a_full_disk_is_told_so_and_can_later(tmp_path):
    app = make_app(tmp_path, EchoModel(), gradio_auth="anna:right")
    try:
        sessions = app.access._sessions._db  # type: ignore[attr-defined]
        sessions.execute(f"PRAGMA max_page_count = {sessions.execute('PRAGMA page_count').fetchone()[0]}")
        with serving(app) as url, httpx.Client(base_url=url) as browser:
            form = {"user": "anna", "password": "right"}
            answer = browser.post("/login", data=form)
            while answer.status_code == 303:  # until what is free in its pages is used up
                answer = browser.post("/login", data=form)
            assert answer.status_code == 507 and "disk of this server is full" in answer.text
            sessions.execute("PRAGMA max_page_count = 4294967294")
            assert browser.post("/login", data=form).status_code == 303
    finally:
        app.close()


def test_a_history_that_finds_no_room_to_be_brought_up_to_date_is_not_called_broken(tmp_path, monkeypatch):
    def full(db: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr("modules.chats.database.migrate", full)
    with pytest.raises(DiskFull, match=r"chats\.sqlite3"):
        ChatStore(tmp_path / "chats.sqlite3")


def test_a_file_that_is_sent_to_a_full_disk_is_told_it(app, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "data/uploads/x")

    with serving(app) as url:
        monkeypatch.setattr("gradio.route_utils.GradioMultiPartParser.parse", full)
        answer = httpx.post(url + "/gradio_api/upload", files={"files": ("a.txt", b"hello")})
    assert answer.status_code == 507, answer.text
    assert answer.json()["error"]["code"] == "disk_full"
