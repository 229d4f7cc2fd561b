"""The event stream of a browser: server-sent events of everything that its tabs follow, over one connection.

GET chats/events opens it, POST chats/events/ID changes what it follows. Each event is named by the label under which its topic was
asked for; its id is the position from which a reader who has it goes on, which a client that comes back says as `after`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from modules.api.page.dependencies import CurrentWorkspace
from modules.api.page.reply_stream import News
from modules.api.page.topics import Topic, Topics
from modules.app import App
from modules.errors import NotFound, UserError
from modules.i18n.sentences import SCOPE_KEY, said
from modules.services.workspace import Workspace

HEARTBEAT = 15.0
"""Seconds of silence after which a comment says that the connection lives; the page waits for two of them."""
LOGIN_PERIOD = 5.0
"""Seconds after which a stream asks again whether its user is still logged in, before it sends more."""
MOST_TOPICS = 300
STREAM_HEADER = "X-Event-Stream"
Label = Annotated[str, Field(pattern=r"^[\w.:-]{1,60}$")]
_TOPICS = TypeAdapter(dict[Label, Topic])


class Subscription(BaseModel):
    """Labels that are followed no longer, and topics that are followed from now on."""

    remove: list[Label] = []
    add: dict[Label, Topic] = {}


class Stream:
    """One connection: a task for each topic, whose news wait until the browser has taken what came before."""

    def __init__(self, topics: Topics, workspace: Workspace, language: str) -> None:
        self.owner = workspace.owner
        self._topics, self._workspace, self._language = topics, workspace, language
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ready: asyncio.Queue[str] = asyncio.Queue(maxsize=8)
        self._loop = asyncio.get_running_loop()

    @property
    def busy(self) -> bool:
        """Whether more can come."""
        return bool(self._tasks) or not self._ready.empty()

    def change(self, subscription: Subscription) -> None:
        """Raises UserError for more topics than one browser has."""
        for label in subscription.remove:
            if task := self._tasks.pop(label, None):
                task.cancel()
        if len(self._tasks) + len(subscription.add) > MOST_TOPICS:
            raise UserError(f"A stream follows {MOST_TOPICS} topics at most.")
        for label, topic in subscription.add.items():
            if label not in self._tasks:
                self._tasks[label] = asyncio.create_task(self._follow(label, topic))

    async def _follow(self, label: str, topic: Topic) -> None:
        try:
            async with contextlib.aclosing(self._topics.follow(topic, self._workspace, self._language)) as events:
                async for news in events:
                    await self._ready.put(frame(label, news))
        except UserError as error:
            await self._ready.put(frame(label, News({"error": said(error.message)})))
        if self._tasks.get(label) is asyncio.current_task():
            del self._tasks[label]
        if not self._tasks:
            await self._ready.put("")  # whoever reads learns that this was all

    async def read(self) -> str:
        """All frames that are there, waiting for the first; a comment where none comes for HEARTBEAT seconds.

        "" once nothing more comes.
        """
        try:
            pieces = [await asyncio.wait_for(self._ready.get(), HEARTBEAT)]
        except TimeoutError:
            return ":\n\n"
        while not self._ready.empty():
            pieces.append(self._ready.get_nowait())
        return "".join(pieces)

    def end(self) -> None:
        """Let the reader find that nothing more comes. For any thread."""

        def end() -> None:
            self.close()
            if self._ready.empty():
                self._ready.put_nowait("")

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(end)

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()


def frame(label: str, news: News) -> str:
    """One server-sent event."""
    position = f"id:{news.position}\n" if news.position else ""
    return f"event:{label}\n{position}data:{json.dumps(news.data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def router(app: App, topics: Topics) -> APIRouter:
    """Part of the router of chats/, which has checked who asks."""
    routes = APIRouter(prefix="/events")
    streams: dict[str, Stream] = {}

    def end_all() -> None:
        for stream in list(streams.values()):
            stream.end()

    app.on_stop.append(end_all)

    @routes.get("")
    async def events(
        request: Request, workspace: CurrentWorkspace, wanted: Annotated[str, Query(alias="topics")], once: bool = False
    ) -> StreamingResponse:
        """Server-sent events of `topics` (JSON: label → topic), until all of them have ended. once: of the first news alone."""
        stream = Stream(topics, workspace, request.scope.get(SCOPE_KEY, "en"))
        stream.change(Subscription(add=topics_of(wanted)))
        id_ = secrets.token_urlsafe(12)
        streams[id_] = stream
        still = _still_logged_in(app, request, workspace.owner)

        async def frames() -> AsyncIterator[str]:
            try:
                yield ":\n\n"  # whatever stands between shows now whether it lets pieces through
                while stream.busy:
                    news = await stream.read()
                    if not await still():
                        return
                    yield news
                    if once:
                        return
            finally:
                streams.pop(id_, None)
                stream.close()

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", STREAM_HEADER: id_}
        return StreamingResponse(frames(), media_type="text/event-stream", headers=headers)

    @routes.post("/{id_}")
    async def change(workspace: CurrentWorkspace, id_: str, body: Subscription) -> None:
        """Change what a stream follows. Raises NotFound for those that have ended, and for those of others."""
        stream = streams.get(id_)
        if stream is None or stream.owner != workspace.owner:
            raise NotFound("This stream has ended: open another.")
        stream.change(body)

    return routes


def topics_of(text: str) -> dict[str, Topic]:
    """Raises UserError for what is no list of topics."""
    try:
        found = _TOPICS.validate_json(text)
    except ValidationError as error:
        raise UserError(f"What is to be followed cannot be read: {error.errors()[0]['msg']}.", param="topics") from None
    if not found:
        raise UserError("There is nothing to follow.", param="topics")
    return found


def _still_logged_in(app: App, request: Request, owner: str) -> Callable[[], Awaitable[bool]]:
    """Whether the session of `request` goes on, asked of the store every LOGIN_PERIOD seconds."""
    asked = time.monotonic()

    async def still() -> bool:
        nonlocal asked
        if not app.access.logins or time.monotonic() - asked < LOGIN_PERIOD:
            return True
        asked = time.monotonic()
        return await asyncio.to_thread(app.access.user_of, request) == owner

    return still
