"""Events on their way from the thread that makes them to whoever reads them: a thread or an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from modules.generation.types import GenerationEvent


Ready = tuple[asyncio.AbstractEventLoop, asyncio.Event]


class _Held(threading.local):
    """Who is woken when this thread leaves `put_together`: readers in event loops, and streams that threads wait for."""

    active = False

    def __init__(self) -> None:
        self.ready: list[Ready] = []
        self.streams: list[EventStream] = []


_held = _Held()


@contextmanager
def put_together() -> Iterator[None]:
    """Events that this thread puts inside reach their readers at its end: an event loop is woken once, however many streams it reads.

    For a step of a batch. Readers who look without waiting see each event at once.
    """
    if _held.active:
        yield
        return
    _held.active = True
    try:
        yield
    finally:
        _held.active = False
        ready, streams = _held.ready, _held.streams
        _held.ready, _held.streams = [], []
        for stream in streams:
            stream.notify()
        loops: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
        for loop, event in ready:
            loops.setdefault(loop, []).append(event)
        for loop, events in loops.items():
            _set_soon(loop, events)


def _set_soon(loop: asyncio.AbstractEventLoop, events: Sequence[asyncio.Event]) -> None:
    """Set the events on the loop's own thread. A loop that is closed has no readers left."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_set, events)


def _set(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()


class EventStream:
    """One request's events. Iterate it with `for` or `async for`; closing it stops the work, from any thread.

    The maker calls `put`, then `end` or `fail`, and looks at `closed` between steps.
    Callbacks of `on_close` run once: when the reader closes, or when the maker ends or fails. `last` is the newest event.
    `ignored` are the places in the request's JSON schema of what the reply is not held to.
    """

    def __init__(self) -> None:
        self._events: deque[GenerationEvent] = deque()
        self._changed = threading.Condition()
        self._listeners: list[Ready] = []
        self._waiting = 0
        self._callbacks: list[Callable[[], None]] = []
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self.last: GenerationEvent | None = None
        self.ignored: tuple[str, ...] = ()

    # --- the maker's side

    @property
    def closed(self) -> bool:
        """Whether the reader has left: nothing more is wanted."""
        return self._closed

    @property
    def error(self) -> BaseException | None:
        """Why the maker gave up; None where it did not."""
        return self._error

    def put(self, event: GenerationEvent) -> None:
        """Hand one event over. Does nothing once the reader has left, or after the end."""
        with self._changed:
            if not (self._closed or self._ended):
                self.last = event
                self._events.append(event)
                self._wake()

    def end(self) -> None:
        """No more events."""
        self._finish(None)

    def fail(self, error: BaseException) -> None:
        """The reader gets `error` raised after the events handed over so far."""
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        with self._changed:
            if self._ended:
                return
            self._ended, self._error = True, error
            self._wake()
        self._run_callbacks()

    def notify(self) -> None:
        """Wake the threads that wait in `get`. For `put_together`."""
        with self._changed:
            self._changed.notify_all()

    # --- the reader's side

    def get(self, timeout: float | None = None) -> GenerationEvent | None:
        """The next event; None at the end. Raises the maker's error, or TimeoutError after `timeout` seconds."""
        with self._changed:
            self._waiting += 1
            try:
                if not self._changed.wait_for(self._readable, timeout):
                    raise TimeoutError
            finally:
                self._waiting -= 1
            return self._take()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GenerationEvent:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationEvent:
        await self._wait_until_readable()
        with self._changed:
            event = self._take()
        if event is None:
            raise StopAsyncIteration
        return event

    async def read(self) -> list[GenerationEvent]:
        """All the events that are there, waiting for the first; none at the end. Raises the maker's error.

        For readers who pay for each turn: what came while they were busy is one list.
        """
        await self._wait_until_readable()
        with self._changed:
            if self._events:
                events = list(self._events)
                self._events.clear()
                return events
            self._take()
            return []

    async def _wait_until_readable(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._readable():
                    return
                ready = asyncio.Event()
                self._listeners.append((loop, ready))
            await ready.wait()

    def close(self) -> None:
        """Stop the work and drop what was not read. Idempotent; safe while another thread waits in `get`.

        A stream that has ended keeps its last events: there is no work to stop, and its reader may be slow.
        """
        with self._changed:
            if self._closed or self._ended:
                return
            self._closed = True
            self._events.clear()
            self._wake()
        self._run_callbacks()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the stream is over, however it ends; at once if it is over already."""
        with self._changed:
            if not (self._closed or self._ended):
                self._callbacks.append(callback)
                return
        callback()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- shared; the caller holds the lock

    def _readable(self) -> bool:
        return bool(self._events) or self._ended or self._closed

    def _take(self) -> GenerationEvent | None:
        if self._events:
            return self._events.popleft()
        if self._error is not None and not self._closed:
            raise self._error
        return None

    def _wake(self) -> None:
        listeners, self._listeners = self._listeners, []
        if _held.active:
            _held.ready += listeners
            if self._waiting:
                _held.streams.append(self)
            return
        self._changed.notify_all()
        for loop, event in listeners:
            _set_soon(loop, (event,))

    def _run_callbacks(self) -> None:
        with self._changed:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
