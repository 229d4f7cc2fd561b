"""From the engine's events to a client: several replies at once, and a client that leaves ends them all."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from modules.api.errors import body_of_exception
from modules.generation.leased_model import LeasedModel
from modules.generation.model_manager import ModelManager
from modules.generation.stream import EventStream
from modules.generation.types import GenerationEvent, GenerationRequest

T = TypeVar("T")
HEARTBEAT_SECONDS = 10.0
FIRST_EVENT_SECONDS = 5.0
LOADING_SECONDS = 1.0
"""Between two words about a model that is being loaded."""
EVENTS = {
    "text/event-stream": {"itemSchema": {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}}
}
"""How /openapi.json names a stream: a row of events with JSON in them."""
CLIENT_LEFT = 499
"""A status that nobody sees."""
DONE = b"data: [DONE]\n\n"


async def after_model_load(
    manager: ModelManager, work: Callable[[], Coroutine[Any, Any, Response]], *, stream: bool
) -> Response:
    """The answer of `work`, once a model that was unloaded while idle is loaded again. Raises UserError.

    A stream that has to wait long begins at once, with comments that say what is being loaded.
    """
    if reloading := manager.reload():
        loading = asyncio.wrap_future(reloading)
        if stream:
            await asyncio.wait({loading}, timeout=FIRST_EVENT_SECONDS)
        if stream and not loading.done():
            streams: list[EventStream] = []
            return EventSource(_stream_after_load(manager, loading, work, streams), streams)
        await loading
    return await work()


async def _stream_after_load(
    manager: ModelManager,
    loading: asyncio.Future[None],
    work: Callable[[], Coroutine[Any, Any, Response]],
    streams: list[EventStream],
) -> AsyncGenerator[bytes]:
    while not loading.done():
        status = manager.status
        yield f": loading {status.name} {' '.join(status.progress.split())}\n\n".encode()
        await asyncio.wait({loading}, timeout=LOADING_SECONDS)
    loading.result()
    answer = await work()
    assert isinstance(answer, EventSource)
    streams += answer.streams
    async with contextlib.aclosing(answer.pieces) as pieces:
        async for piece in pieces:
            yield piece


async def open_streams(model: LeasedModel, requests: Sequence[GenerationRequest]) -> list[EventStream]:
    """One stream for each request, all of them or none. Raises UserError."""
    opening = asyncio.ensure_future(run_in_threadpool(_open_all, model, requests))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_what_was_opened)
        raise


def _close_what_was_opened(opening: asyncio.Future[list[EventStream]]) -> None:
    """The thread cannot be stopped half-way, and nobody is left to take its streams."""
    if not opening.cancelled() and opening.exception() is None:
        close_all(opening.result())


def _open_all(model: LeasedModel, requests: Sequence[GenerationRequest]) -> list[EventStream]:
    with contextlib.ExitStack() as undo:
        streams = [undo.enter_context(model.stream(request)) for request in requests]
        undo.pop_all()
    return streams


def close_all(streams: Sequence[EventStream]) -> None:
    """Closing is stopping."""
    for stream in streams:
        stream.close()


async def merged(streams: Sequence[EventStream]) -> AsyncIterator[tuple[int, list[GenerationEvent]]]:
    """(index of the stream, its next events) as they come. Raises what a stream raises."""
    if len(streams) == 1:
        while events := await streams[0].read():
            yield 0, events
        return
    arrived: asyncio.Queue[tuple[int, list[GenerationEvent] | BaseException]] = asyncio.Queue()

    async def pump(index: int) -> None:
        try:
            while events := await streams[index].read():
                arrived.put_nowait((index, events))
        except Exception as error:  # noqa: BLE001 — it is raised again on the reader's side
            arrived.put_nowait((index, error))
        else:
            arrived.put_nowait((index, []))

    pumps = [asyncio.create_task(pump(index)) for index in range(len(streams))]
    try:
        running = len(streams)
        while running:
            index, events = await arrived.get()
            if isinstance(events, BaseException):
                raise events
            if events:
                yield index, events
            else:
                running -= 1
    finally:
        for task in pumps:
            task.cancel()


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The answer that `work` makes; it is cancelled when the client leaves."""
    answer = await until_gone(request.receive, work)
    return answer if answer is not None else Response(status_code=CLIENT_LEFT)


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None where the client left before, which cancels it."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await _end({task, gone})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
        pass


async def _end(tasks: set[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def begun(events: AsyncIterator[T]) -> AsyncIterator[T]:
    """`events`, once the first is there: what goes wrong until then still gets a status of its own.

    A model that says nothing for a while (a long prompt) is not waited for: the answer begins without it.
    """
    first = asyncio.ensure_future(anext(events, None))
    try:
        await asyncio.wait({first}, timeout=FIRST_EVENT_SECONDS)
        if first.done():
            first.result()
    except BaseException:
        await _end({first})
        raise
    return _after(first, events)


async def _after(first: asyncio.Future[T | None], events: AsyncIterator[T]) -> AsyncIterator[T]:
    try:
        event = await first
        if event is not None:
            yield event
            async for event in events:
                yield event
    finally:
        await _end({first})


def data(value: Any) -> bytes:
    """One server-sent event with `value` as JSON."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


class EventSource(Response):
    """Sends `pieces` as server-sent events, and closes `streams` at the end or as soon as the client is gone.

    Starlette's own StreamingResponse notices a client's leaving only when it sends the next piece.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[bytes], streams: Sequence[EventStream]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.pieces = pieces
        self.streams = streams
        self._sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: set[asyncio.Future[Any]] = set()
        try:
            write = asyncio.ensure_future(self._write(send))
            gone = asyncio.ensure_future(_until_gone(receive))
            tasks = {write, gone, asyncio.ensure_future(self._keep_alive(send))}
            await asyncio.wait({write, gone}, return_when=asyncio.FIRST_COMPLETED)
            if write.done():
                write.result()
        except OSError:
            pass  # the client left in the middle of a piece
        finally:
            close_all(self.streams)
            await _end(tasks)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(_told(self.pieces)) as pieces:
            async for piece in pieces:
                self._sent += 1
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        """A comment now and then, so that no proxy on the way gives up while the prompt is read."""
        seen = -1
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if seen == self._sent:
                await send({"type": "http.response.body", "body": b": still working\n\n", "more_body": True})
            seen = self._sent


async def _told(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """`pieces`; what goes wrong is told in the stream itself, because its status is long sent."""
    try:
        async for piece in pieces:
            yield piece
    except Exception as error:  # noqa: BLE001
        yield b"event: error\n" + data(body_of_exception(error)[1])
