"""The event stream of the page: what is told of each topic, and when; what is followed changes on the way; many who follow."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from modules.access import COOKIE
from modules.api.page.changes import ACTED, Changes, Sampled
from modules.api.page.events import STREAM_HEADER
from modules.app import App
from modules.errors import UserError
from tests.api.page.test_chats import apps
from tests.fakes import EchoModel
from tests.in_process import serving

__all__ = ["apps"]
MANY = 300


class Listener:
    """One stream that is being read: `next` takes what comes."""

    def __init__(self, client: httpx.AsyncClient, answer: httpx.Response) -> None:
        self.client, self.id = client, answer.headers[STREAM_HEADER]
        self._lines = answer.aiter_lines()

    async def next(self) -> tuple[str, str, Any]:
        """(label, position, data) of the next event. Raises StopAsyncIteration at the end."""
        label = position = ""
        while True:
            line = await anext(self._lines)
            name, _, value = line.partition(":")
            if name == "event":
                label, position = value, ""
            elif name == "id":
                position = value
            elif name == "data":
                return label, position, json.loads(value)

    async def first(self, label: str) -> tuple[str, Any]:
        """(position, data) of the next event of a label."""
        while True:
            found, position, data = await self.next()
            if found == label:
                return position, data

    async def change(self, client: httpx.AsyncClient | None = None, **body: object) -> int:
        answer = await (client or self.client).post(f"/chats/events/{self.id}", json=body)
        return answer.status_code


@asynccontextmanager
async def listening(client: httpx.AsyncClient, **topics: object) -> AsyncIterator[Listener]:
    async with client.stream("GET", "/chats/events", params={"topics": json.dumps(topics)}) as answer:
        assert answer.status_code == 200
        yield Listener(client, answer)


@pytest.fixture
def served(apps: Any) -> Iterator[tuple[App, str]]:
    app = apps(EchoModel(lambda request: "An answer."))
    with serving(app) as url:
        yield app, url


def run(url: str, work: Any, **options: Any) -> None:
    async def inside() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60, **options) as client:
            await work(client)

    asyncio.run(inside())


def test_a_topic_is_told_as_it_is_and_then_as_it_changes(served: tuple[App, str]):
    app, url = served
    chat = app.store.for_owner("local").chats.create(title="one")

    async def work(client: httpx.AsyncClient) -> None:
        async with listening(client, c={"kind": "chat", "of": str(chat.id)}, l={"kind": "list"}) as listener:
            _, before = await listener.first("c")
            app.store.for_owner("local").chats.rename(chat.id, "another")
            _, after = await listener.first("c")
            assert after["revision"] > before["revision"]
            app.store.for_owner("local").chats.delete(chat.id)
            while (await listener.first("c"))[1]["revision"] is not None:
                pass

    run(url, work)


def test_who_comes_back_is_not_told_again_what_they_have(served: tuple[App, str]):
    app, url = served
    chat = app.store.for_owner("local").chats.create()

    async def work(client: httpx.AsyncClient) -> None:
        topic = {"kind": "chat", "of": str(chat.id)}
        async with listening(client, c=topic) as listener:
            position, told = await listener.first("c")
        async with listening(client, c={**topic, "after": position}) as listener:
            app.store.for_owner("local").chats.rename(chat.id, "changed")
            assert (await listener.first("c"))[1]["revision"] > told["revision"]

    run(url, work)


def test_what_is_followed_changes_without_a_new_stream(served: tuple[App, str]):
    app, url = served
    one, two = (app.store.for_owner("local").chats.create(title=title) for title in ("one", "two"))

    async def work(client: httpx.AsyncClient) -> None:
        async with listening(client, one={"kind": "chat", "of": str(one.id)}) as listener:
            await listener.first("one")
            assert await listener.change(remove=["one"], add={"two": {"kind": "chat", "of": str(two.id)}}) == 200
            assert (await listener.next())[0] == "two"
            app.store.for_owner("local").chats.rename(one.id, "nobody follows it any more")
            app.store.for_owner("local").chats.rename(two.id, "changed")
            assert (await listener.next())[0] == "two"
            assert await listener.change(add={"x y": {"kind": "list"}}) == 400
            assert await listener.change(add={"x": {"kind": "nothing"}}) == 400
        assert await listener.change(remove=["two"]) == 404, "the stream has ended"

    run(url, work)


def test_a_stream_belongs_to_who_opened_it(apps: Any):
    app = apps(EchoModel(), gradio_auth="ann:ann-password,bob:bob-password")
    ann, bob = ({COOKIE: app.access.log_in(user, f"{user}-password", "there")} for user in ("ann", "bob"))
    secret = app.store.for_owner("ann").chats.create(title="secret")

    async def work(client: httpx.AsyncClient) -> None:
        async with httpx.AsyncClient(base_url=url, cookies=bob) as other, listening(client, l={"kind": "list"}) as listener:
            await listener.first("l")
            assert await listener.change(other, add={"x": {"kind": "list"}}) == 404
            async with listening(other, c={"kind": "chat", "of": str(secret.id)}) as theirs:
                assert (await theirs.first("c"))[1] == {"revision": None}
            async with httpx.AsyncClient(base_url=url) as stranger:
                assert (await stranger.get("/chats/events", params={"topics": "{}"})).status_code == 401

    with serving(app) as url:
        run(url, work, cookies=ann)


def test_a_stream_ends_with_its_session(apps: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("modules.api.page.events.LOGIN_PERIOD", 0)
    app = apps(EchoModel(), gradio_auth="ann:ann-password")
    cookie = app.access.log_in("ann", "ann-password", "there")
    chat = app.store.for_owner("ann").chats.create()

    async def work(client: httpx.AsyncClient) -> None:
        async with listening(client, c={"kind": "chat", "of": str(chat.id)}) as listener:
            await listener.first("c")
            await client.post("/logout")
            app.store.for_owner("ann").chats.rename(chat.id, "after")
            with pytest.raises(StopAsyncIteration):
                await listener.next()

    with serving(app) as url:
        run(url, work, cookies={COOKIE: cookie})


@pytest.mark.parametrize(
    "topics", ["", "{}", "[1]", '{"a": {"kind": "x"}}', '{"a\\nb": {"kind": "list"}}', '{"a": {"kind": "list"']
)
def test_what_cannot_be_followed_is_refused_with_a_reason(served: tuple[App, str], topics: str):
    answer = httpx.get(f"{served[1]}/chats/events", params={"topics": topics})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "of"), [("chat", "x"), ("reply", "12345"), ("run", "none"), ("writing", "none"), ("notebook", "none")]
)
def test_a_topic_that_is_not_there_says_so_and_ends(served: tuple[App, str], kind: str, of: str):
    with httpx.stream(
        "GET", f"{served[1]}/chats/events", params={"topics": json.dumps({"a": {"kind": kind, "of": of}})}
    ) as answer:
        told = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]
    assert [*told[0]] == ["error"] and len(told) == 1


def test_once_ends_with_the_first_news(served: tuple[App, str]):
    topics = json.dumps({"a": {"kind": "list"}})
    answer = httpx.get(f"{served[1]}/chats/events", params={"topics": topics, "once": True})
    assert answer.text.count("event:a") == 1


def test_many_streams_have_no_threads_of_their_own_and_are_all_told(served: tuple[App, str]):
    limits = httpx.Limits(max_connections=None)

    async def one(client: httpx.AsyncClient, ready: list[None], told: list[int]) -> None:
        async with listening(client, s={"kind": "status"}, l={"kind": "list"}) as listener:
            for _ in range(2):
                await listener.next()
            ready.append(None)
            while (await listener.first("s"))[1]["tokens"] is not True:
                pass
            told.append(threading.active_count())

    async def work(client: httpx.AsyncClient) -> None:
        ready: list[None] = []
        told: list[int] = []
        tasks = [asyncio.create_task(one(client, ready, told)) for _ in range(MANY)]
        while len(ready) < MANY:
            await asyncio.sleep(0.05)
        await client.post("/chats/token-view", json={"on": True})
        await asyncio.gather(*tasks)
        assert len(told) == MANY and max(told) < 100

    run(served[1], work, limits=limits)


def test_a_value_that_is_sampled_is_computed_once_for_all_who_follow():
    computed: list[int] = []

    def compute() -> int:
        computed.append(0)
        return len(computed)

    async def work() -> None:
        changes = Changes()
        sampled = Sampled(changes, "key", compute, period=3600)
        with sampled.followed(), sampled.followed(), changes.subscribed("key") as changed:
            assert {await sampled.value(), await sampled.value()} == {1}
            changed.clear()
            changes.notify(ACTED)
            await changed.wait()
            assert await sampled.value() == 2 == len(computed)
        assert not sampled.is_followed

    asyncio.run(work())


def test_a_value_that_cannot_be_computed_is_told_to_who_asks():
    def compute() -> int:
        raise UserError("It is broken.")

    async def work() -> None:
        sampled = Sampled(Changes(), "key", compute, period=3600)
        with sampled.followed(), pytest.raises(UserError, match="broken"):
            await sampled.value()

    asyncio.run(work())


def test_a_change_that_is_undone_wakes_nobody(apps: Any):
    app, woken = apps(), []
    app.store.database.watchers.append(woken.append)
    with pytest.raises(RuntimeError), app.store.database.transaction():
        app.store.for_owner("local").chats.create()
        raise RuntimeError
    assert woken == []
    app.store.for_owner("local").chats.create()
    app.store.for_owner("ann").preferences.set("name", 1)
    assert woken == [{"local"}, {"ann"}]
