"""Change notification for event streams: who waits is woken by key, from any thread, and shared values are computed once for all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from modules.errors import UserError

log = logging.getLogger(__name__)
Value = TypeVar("Value")
ACTED = "acted"
"""The key that is notified when a request of the page has changed something."""

MOST_OFTEN = 0.1
"""Seconds between two computations of one value, however many act."""


class Changes:
    """Keys, and the asyncio events of those who wait for them. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = defaultdict(set)

    def notify(self, *keys: Hashable) -> None:
        """Wake everyone who waits for one of `keys`."""
        with self._lock:
            woken = {entry for key in keys for entry in self._waiting.get(key, ())}
        for loop, event in woken:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(event.set)

    @contextmanager
    def subscribed(self, *keys: Hashable) -> Iterator[asyncio.Event]:
        """An event that each notification of `keys` sets; whoever waits clears it. For coroutines."""
        entry = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            for key in keys:
                self._waiting[key].add(entry)
        try:
            yield entry[1]
        finally:
            with self._lock:
                for key in keys:
                    self._waiting[key].discard(entry)
                    if not self._waiting[key]:
                        del self._waiting[key]


class Sampled(Generic[Value]):
    """A value without notification of its own: computed in a thread every `period` seconds and after each action, while followed.

    `key` is notified when it has changed. Its task belongs to the event loop of whoever follows first.
    """

    def __init__(self, changes: Changes, key: Hashable, compute: Callable[[], Value], period: float) -> None:
        self._changes, self._key, self._compute, self._period = changes, key, compute, period
        self._followers = 0
        self._task: asyncio.Task[None] | None = None
        self._first: asyncio.Future[Value] | None = None
        self._value: Value | None = None

    @property
    def is_followed(self) -> bool:
        return self._followers > 0

    async def value(self) -> Value:
        """The newest value; waits for the first one. Raises what computing the first one raises."""
        assert self._first is not None, "it is followed"
        await asyncio.shield(self._first)
        return self._value  # type: ignore[return-value]

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Keep the value up to date within this block."""
        if self._task is None:
            self._first = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(self._first))
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1
            if not self._followers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _run(self, first: asyncio.Future[Value]) -> None:
        with self._changes.subscribed(ACTED) as acted:
            while True:
                acted.clear()
                try:
                    value = await asyncio.to_thread(self._compute)
                except UserError as error:  # where the first one fails it is told; later the value that was there stays
                    if not first.done():
                        first.set_exception(error)
                        first.exception()  # whoever followed may have left
                        return
                except Exception as error:
                    log.exception("a value that pages follow could not be computed")
                    if not first.done():
                        first.set_exception(UserError(f"Something broke: {error}. The server's log says more."))
                        first.exception()
                        return
                else:
                    if not first.done() or value != self._value:
                        self._value = value
                        self._changes.notify(self._key)
                    if not first.done():
                        first.set_result(value)
                await asyncio.sleep(min(MOST_OFTEN, self._period))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(acted.wait(), self._period)
