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
    """announced: whether the place in the queue is told; it is not to who has begun and only waits for more room."""

    events: EventStream
    tokens: int
    start: Callable[[], None]
    announced: bool = True
    admitted: bool = False


class Gate:
    """Lets requests in, in order, each with so many tokens of the cache: prompt, and reply as far as it is allowed for now.

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
        if not entry.admitted:
            events.on_close(lambda: self._give_up(entry))

    def grow(self, events: EventStream, held: int, wanted: int) -> bool:
        """Have `wanted` tokens instead of `held`; blocks. Without room, all is given back to wait at the head of the queue.

        False where whoever wanted the reply left meanwhile: nothing is held then.
        """
        with self._lock:
            if wanted - held <= self._tokens:
                self._tokens -= wanted - held
                return True
            over = threading.Event()
            entry = _Waiting(events, wanted, over.set, announced=False)
            self._waiting.appendleft(entry)
            self._give_back(held)
        self._admit()
        events.on_close(lambda: self._give_up(entry))
        events.on_close(over.set)
        over.wait()
        return entry.admitted

    def leave(self, tokens: int) -> None:
        """What `start` began is over."""
        with self._lock:
            self._give_back(tokens)
        self._admit()

    def _give_back(self, tokens: int) -> None:
        self._inside -= 1
        self._slots += 1
        self._tokens += tokens
        self._lock.notify_all()

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
                entry.admitted = True
                admitted.append(entry)
            queue = list(self._waiting)
        for place, entry in enumerate(queue, 1):
            if entry.announced:
                entry.events.put(Queued(place))
        for entry in admitted:
            entry.start()
