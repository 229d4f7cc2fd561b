"""Who may use llama.cpp now and who waits: by free slots, and by room in the cache that all share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from modules.generation.stream import EventStream
from modules.generation.types import Queued


@dataclass(eq=False)
class _Waiting:
    events: EventStream
    tokens: int
    start: Callable[[], None]


class Gate:
    """Lets requests in, in order. Every request says how many tokens it may need at most, prompt and reply.

    llama.cpp ends *all* running replies when its shared cache is full, so that never may happen.
    """

    def __init__(self, slots: int, tokens: int) -> None:
        self._lock = threading.Condition()
        self._slots = slots
        self._tokens = tokens
        self._inside = 0
        self._waiting: deque[_Waiting] = deque()

    @property
    def inside(self) -> int:
        return self._inside

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, events: EventStream, tokens: int, start: Callable[[], None]) -> None:
        """Call `start` as soon as there is room: now, or later on another thread. Whoever closes `events` leaves the queue."""
        entry = _Waiting(events, tokens, start)
        with self._lock:
            self._waiting.append(entry)
        self._admit()
        if entry in self._waiting:
            events.on_close(lambda: self._give_up(entry))

    def leave(self, tokens: int) -> None:
        """What `start` began is over."""
        with self._lock:
            self._inside -= 1
            self._slots += 1
            self._tokens += tokens
            self._lock.notify_all()
        self._admit()

    def wait_until_empty(self) -> None:
        with self._lock:
            self._lock.wait_for(lambda: not self._inside and not self._waiting)

    def _give_up(self, entry: _Waiting) -> None:
        with self._lock:
            if entry not in self._waiting:
                return
            self._waiting.remove(entry)
            self._lock.notify_all()
        self._admit()

    def _admit(self) -> None:
        admitted: list[_Waiting] = []
        with self._lock:
            while self._waiting and self._slots and self._waiting[0].tokens <= self._tokens:
                entry = self._waiting.popleft()
                self._inside += 1
                self._slots -= 1
                self._tokens -= entry.tokens
                admitted.append(entry)
            queue = list(self._waiting)
        for place, entry in enumerate(queue, 1):
            entry.events.put(Queued(place))
        for entry in admitted:
            entry.start()
