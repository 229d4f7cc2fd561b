"""What an event stream can follow: each topic is an asynchronous iterator of its news."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import nullcontext
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic_core import to_jsonable_python

from modules.api.model_answers import models_page
from modules.api.page import views
from modules.api.page.changes import Changes, Sampled
from modules.api.page.reply_stream import News, Renderings, follow, follow_text
from modules.api.training_answers import run_detail, run_list
from modules.app import App
from modules.chats.records import PathMessage
from modules.errors import NotFound
from modules.services.workspace import Workspace

STATUS_PERIOD = 0.4
MODELS_PERIOD = 0.5
TRAINING_PERIOD = 1.0
SERVER_PERIOD = 3.0


class Topic(BaseModel):
    """What a tab follows. of: which chat, reply, page of the notebook or run. after: the position of the last event that the tab has.

    tokens: whether the tokens of the reply are told. form: of the text on a page of the notebook.
    """

    kind: Literal["status", "list", "chat", "reply", "notebook", "writing", "models", "training", "run", "server", "deleted"]
    of: str = Field("", max_length=200)
    after: str = Field("", max_length=40)
    tokens: bool = False
    form: Literal["text", "markdown"] = "text"

    @property
    def number(self) -> int:
        """`of` as an id. Raises NotFound."""
        if not self.of.isascii() or not self.of.isdigit():
            raise NotFound("There is nothing of this number.")
        return int(self.of)

    @property
    def position(self) -> int:
        return int(self.after) if self.after.isascii() and self.after.isdigit() else 0


class Topics:
    """The topics of one application: values that all users see are computed once for all streams."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.changes = Changes()
        self._sampled: dict[Hashable, Sampled[Any]] = {}
        self._replies = Renderings[int]()
        self._pages = Renderings[tuple[str, str]]()
        app.store.database.watchers.append(lambda owners: self.changes.notify(*(("owner", owner) for owner in owners)))

    def follow(self, topic: Topic, workspace: Workspace, language: str) -> AsyncGenerator[News, None]:
        """The news of a topic for one user; it ends with a reply, and never for what stays. Raises NotFound as it is read."""
        app, owner, admin = self._app, workspace.owner, workspace.is_admin
        match topic.kind:
            case "status":
                return self._status(topic, workspace, language)
            case "list":
                return self._of_owner(
                    topic, owner, lambda: {"revision": workspace.history.chats.list_revision(), "epoch": app.started}
                )
            case "chat":
                chat_id = topic.number
                return self._of_owner(topic, owner, lambda: {"revision": workspace.history.chats.revision(chat_id)})
            case "notebook":
                return self._of_owner(topic, owner, lambda: {"revision": workspace.notebook.pages.read(topic.of).revision})
            case "reply":
                return self._reply(topic, workspace)
            case "writing":
                return self._writing(topic, workspace)
            case "models":
                return self._shared(topic, ("models", admin, language), lambda: models_page(workspace), MODELS_PERIOD)
            case "training":
                return self._shared(topic, ("training", admin, language), lambda: run_list(workspace), TRAINING_PERIOD)
            case "run":
                run = topic.of
                return self._shared(
                    topic, ("run", run, language), lambda: run_detail(workspace.training.detail(run)), TRAINING_PERIOD
                )
            case "server":
                return self._shared(topic, ("server", owner), lambda: views.server_view(workspace), SERVER_PERIOD)
            case "deleted":
                return self._shared(topic, ("deleted", owner), workspace.undo.all, SERVER_PERIOD)

    def _sample(self, key: Hashable, compute: Callable[[], Any], period: float) -> Sampled[Any]:
        """The shared value of this key, made by whoever is the first to follow it."""
        self._sampled = {known: sampled for known, sampled in self._sampled.items() if sampled.is_followed}
        if key not in self._sampled:
            self._sampled[key] = Sampled(self.changes, key, compute, period)
        return self._sampled[key]

    async def _shared(
        self, topic: Topic, key: Hashable, compute: Callable[[], Any], period: float
    ) -> AsyncGenerator[News, None]:
        sampled = self._sample(key, compute, period)
        with self.changes.subscribed(key) as changed, sampled.followed():
            version = topic.after
            while True:
                changed.clear()
                news = _state(await sampled.value())
                if news.position != version:
                    version = news.position
                    yield news
                await changed.wait()

    async def _status(self, topic: Topic, workspace: Workspace, language: str) -> AsyncGenerator[News, None]:
        key = ("status", language)
        sampled = self._sample(key, lambda: views.engine_status_view(self._app), STATUS_PERIOD)
        with self.changes.subscribed(key, ("owner", workspace.owner)) as changed, sampled.followed():
            version = topic.after
            while True:
                changed.clear()
                shared = await sampled.value()
                news = _state(shared | await asyncio.to_thread(views.own_status_view, workspace))
                if news.position != version:
                    version = news.position
                    yield news
                await changed.wait()

    async def _of_owner(self, topic: Topic, owner: str, compute: Callable[[], Any]) -> AsyncGenerator[News, None]:
        with self.changes.subscribed(("owner", owner)) as changed:
            version = topic.after
            while True:
                changed.clear()
                news = _state(await asyncio.to_thread(compute))
                if news.position != version:
                    version = news.position
                    yield news
                await changed.wait()

    async def _reply(self, topic: Topic, workspace: Workspace) -> AsyncGenerator[News, None]:
        messages, message_id = workspace.history.messages, topic.number

        def final() -> dict[str, Any]:
            message = messages.get(message_id)
            path = messages.path(message.chat_id, leaf=message_id)
            return views.reply_view(workspace, path[-1] if path else PathMessage(message, (message_id,)), {})

        await asyncio.to_thread(messages.get, message_id)
        reply = workspace.replies.get(message_id)
        if reply is None:
            yield News({"over": await asyncio.to_thread(final)})
            return
        streaming = (await asyncio.to_thread(lambda: workspace.preferences.page)).stream
        with self._replies.watched(message_id, reply) as rendering:
            async for news in follow(rendering, topic.position, final, tokens=topic.tokens, streaming=streaming):
                yield news

    async def _writing(self, topic: Topic, workspace: Workspace) -> AsyncGenerator[News, None]:
        notebook, name = workspace.notebook.pages, topic.of

        def final() -> dict[str, Any]:
            view = views.page_view(notebook.read(name))
            return view if topic.form == "markdown" else {field: value for field, value in view.items() if field != "text"}

        reply = notebook.reply(name)
        if reply is None:
            yield News({"over": views.page_view(await asyncio.to_thread(notebook.read, name))})
            return
        streaming = (await asyncio.to_thread(lambda: workspace.preferences.page)).stream
        markdown = topic.form == "markdown"
        with self._pages.watched((workspace.owner, name), reply) if markdown else nullcontext() as rendering:
            events = (
                follow(rendering, topic.position, final, streaming=streaming)
                if rendering is not None
                else follow_text(reply, topic.position, final, streaming=streaming)
            )
            async for news in events:
                yield news


def _state(value: Any) -> News:
    """A value as news: its position tells it from others, so that a reader who has it is not sent it again."""
    value = to_jsonable_python(value)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return News(value, hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16])
