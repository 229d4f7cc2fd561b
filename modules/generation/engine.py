"""The loaded model, and its replacement by another while requests come and go."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from modules.errors import Unavailable, UserError
from modules.generation.stream import EventStream
from modules.generation.types import GenerationRequest, LoadedModel

log = logging.getLogger(__name__)
LINES_KEPT = 200

Load = Callable[[Callable[[str], None]], LoadedModel]
"""Makes a model, and reports its progress in short sentences meanwhile."""


@dataclass(frozen=True)
class EngineStatus:
    """What the page shows: `name` is the model that is loaded or being loaded; error is why the last load failed."""

    state: Literal["empty", "loading", "ready"]
    name: str | None = None
    progress: str = ""
    seconds: float = 0.0
    error: str | None = None


class Engine:
    """One model at a time; any number of requests on it. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._model: LoadedModel | None = None
        self._streams: set[EventStream] = set()
        self._starting = 0
        self._status = EngineStatus("empty")
        self._since = 0.0
        self._said: deque[str] = deque(maxlen=LINES_KEPT)
        self._changing = threading.Semaphore()
        self.last_used = time.monotonic()
        self.watchers: list[Callable[[EventStream], None]] = []
        """Called with every stream that is over, for those who count."""

    @property
    def status(self) -> EngineStatus:
        with self._lock:
            status = self._status
            if status.state != "loading":
                return status
            return EngineStatus("loading", status.name, status.progress, time.monotonic() - self._since)

    @property
    def load_log(self) -> tuple[str, ...]:
        """What the last load has said, line by line."""
        with self._lock:
            return tuple(self._said)

    @property
    def model(self) -> LoadedModel:
        """The loaded model. Raises Unavailable where there is none."""
        with self._lock:
            if self._model is not None:
                return self._model
            if self._status.state == "loading":
                raise Unavailable(f"{self._status.name} is still being loaded. Try again in a moment.")
            if self._status.error:
                raise Unavailable(f"No model is loaded: {self._status.error}")
            raise Unavailable("No model is loaded. Choose one on the Models tab, or start the server with --model NAME.")

    @property
    def loaded(self) -> LoadedModel | None:
        with self._lock:
            return self._model

    def stream(self, request: GenerationRequest) -> EventStream:
        """Answer `request` with the loaded model. Closing the stream stops it. Raises UserError."""
        with self._lock:
            model = self.model
            self.last_used = time.monotonic()
            self._starting += 1
        try:
            events = model.stream(request)
            with self._lock:
                self._streams.add(events)
        finally:
            with self._lock:
                self._starting -= 1
                self._lock.notify_all()
        events.on_close(lambda: self._gone(events))
        return events

    def _gone(self, events: EventStream) -> None:
        with self._lock:
            self._streams.discard(events)
            self.last_used = time.monotonic()
            self._lock.notify_all()
        for watch in self.watchers:
            watch(events)

    def stop_all(self) -> int:
        """Close every running stream; returns how many there were."""
        with self._lock:
            running = list(self._streams)
        for events in running:
            events.close()
        return len(running)

    def replace(self, name: str, load: Load, *, stop_running: bool = False) -> LoadedModel:
        """Let running replies end (or stop them), close the model, load the next. Raises UserError.

        The old model is closed first, so that its memory is free for the new one.
        """
        with self._changing:
            self._close(stop_running, EngineStatus("loading", name, "starting"))
            with self._lock:
                self._said.clear()
            try:
                model = load(self._report)
            except UserError as error:
                self._set(EngineStatus("empty", error=error.message))
                raise
            except Exception as error:
                log.exception("loading %s failed", name)
                message = f"{name} could not be loaded: {error or type(error).__name__}"
                self._set(EngineStatus("empty", error=message))
                raise Unavailable(message) from error
            with self._lock:
                self._model = model
                self._status = EngineStatus("ready", model.name, seconds=time.monotonic() - self._since)
                self.last_used = time.monotonic()
            return model

    def unload(self, *, stop_running: bool = False) -> None:
        """Give the model's memory back. Does nothing without one."""
        with self._changing:
            self._close(stop_running, EngineStatus("empty"))

    def close(self) -> None:
        self.unload(stop_running=True)

    def _close(self, stop_running: bool, status: EngineStatus) -> None:
        with self._lock:
            model, self._model = self._model, None
            self._status = status
            self._since = time.monotonic()
        if model is None:
            return
        if stop_running:
            with self._lock:
                self._lock.wait_for(lambda: not self._starting)
            self.stop_all()
        with self._lock:
            self._lock.wait_for(lambda: not self._streams and not self._starting)
        model.close()

    def _set(self, status: EngineStatus) -> None:
        with self._lock:
            self._status = status

    def _report(self, progress: str) -> None:
        with self._lock:
            if self._said and _without_numbers(self._said[-1]) == _without_numbers(progress):
                self._said.pop()  # the same with another percentage
            self._said.append(progress)
            if self._status.state == "loading":
                self._status = EngineStatus("loading", self._status.name, progress)


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+", "", line)
