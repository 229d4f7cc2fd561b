"""The loaded model, and its replacement by another while requests come and go."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from modules.errors import EngineGone, Unavailable, UserError
from modules.generation.stream import EventStream
from modules.generation.types import Finished, GenerationRequest, LoadedModel

log = logging.getLogger(__name__)
LINES_KEPT = 200

Load = Callable[[Callable[[str], None]], LoadedModel]
"""Makes a model, and reports its progress in short sentences meanwhile."""


State = Literal["empty", "loading", "ready", "asleep"]


@dataclass(frozen=True)
class EngineStatus:
    """What the page shows: `name` is the model that is loaded, being loaded or asleep.

    error: why the last load failed; of one that is asleep, how its engine died.
    """

    state: State
    name: str | None = None
    progress: str = ""
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Asleep:
    """A model that is not loaded, and comes back with the next request: nobody used it for a while, or its engine died.

    What requests can name meanwhile, and how it is loaded.
    """

    name: str
    context_length: int
    adapters: tuple[str, ...]
    load: Load


class Engine:
    """One model at a time; any number of requests on it. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._model: LoadedModel | None = None
        self._loaded_by: Load | None = None
        self._streams: set[EventStream] = set()
        self._starting = 0
        self._status = EngineStatus("empty")
        self._since = 0.0
        self._said: deque[str] = deque(maxlen=LINES_KEPT)
        self._changing = threading.Semaphore()
        self._asleep: Asleep | None = None
        self._waking: Future[None] | None = None
        self.loads = 0
        """How many loads were begun: one that fails at once is seen by it."""
        self.speed: float | None = None
        """Tokens per second of the last reply of the loaded model that was long enough to tell."""
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
        """The loaded model; one that sleeps is loaded first, which takes its time. Raises Unavailable where there is none."""
        if waking := self.wake():
            waking.result()
        return self._used()

    def _used(self) -> LoadedModel:
        with self._lock:
            self.last_used = time.monotonic()
            if self._model is not None:
                return self._model
            if self._status.state == "loading":
                raise Unavailable(f"{self._status.name} is still being loaded. Try again in a moment.")
            if self._status.error:
                raise Unavailable(f"No model is loaded: {self._status.error}")
            raise Unavailable("No model is loaded. Choose one on the Models tab, or start the server with --model NAME.")

    @property
    def asleep(self) -> Asleep | None:
        """The model that the next request loads again; it stays so until it is there, or another is chosen."""
        with self._lock:
            return self._asleep

    @property
    def loaded(self) -> LoadedModel | None:
        with self._lock:
            return self._model

    def stream(self, request: GenerationRequest) -> EventStream:
        """Answer `request` with the loaded model. Closing the stream stops it. Raises UserError."""
        if waking := self.wake():
            waking.result()
        with self._lock:
            model = self._used()
            self._starting += 1
        try:
            events = model.stream(request)
            with self._lock:
                self._streams.add(events)
        except EngineGone as error:
            self._lose(model, error)
            raise
        finally:
            with self._lock:
                self._starting -= 1
                self._lock.notify_all()
        events.on_close(lambda: self._over(events, model))
        return events

    def _over(self, events: EventStream, model: LoadedModel) -> None:
        with self._lock:
            self._streams.discard(events)
            self.last_used = time.monotonic()
            if model is self._model and isinstance(events.last, Finished):
                self.speed = events.last.timings.tokens_per_second(events.last.usage.completion_tokens) or self.speed
            self._lock.notify_all()
        if isinstance(events.error, EngineGone):
            self._lose(model, events.error)
        for watch in self.watchers:
            watch(events)

    def _lose(self, model: LoadedModel, error: EngineGone) -> None:
        """Let go of a model whose engine has died; the next request loads it again. A thread does it: closing may take a while."""

        def let_go() -> None:
            with self._changing:
                with self._lock:
                    if self._model is not model or self._loaded_by is None:  # another was quicker
                        return
                    self._model = None
                    self._asleep = Asleep(model.name, model.context_length, model.adapters, self._loaded_by)
                    self._status = EngineStatus("asleep", model.name, error=error.message)
                log.error("%s is not loaded any more: %s", model.name, error.message)
                model.close()

        threading.Thread(target=let_go, name="engine is gone", daemon=True).start()

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
            return self._load(name, load)

    def _load(self, name: str, load: Load) -> LoadedModel:
        """For whoever holds _changing, while no model is loaded."""
        with self._lock:
            self.loads += 1
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
            self._loaded_by = load
            self.speed = None
            self._asleep = None
            self._status = EngineStatus("ready", model.name, seconds=time.monotonic() - self._since)
            self.last_used = time.monotonic()
        return model

    def sleep(self, load: Load, *, idle: float = 0.0) -> bool:
        """Give the memory of a model back that nobody has used for `idle` seconds; the next request brings it back by `load`.

        False where there is none, or where it is in use.
        """
        with self._changing:
            with self._lock:
                model = self._model
                used = self._streams or self._starting or time.monotonic() - self.last_used < idle
                if model is None or used:
                    return False
                asleep = Asleep(model.name, model.context_length, model.adapters, load)
            self._close(False, EngineStatus("asleep", model.name), asleep)
            return True

    def wake(self) -> Future[None] | None:
        """Begin to load the model that sleeps; None where none does. Whoever asks meanwhile waits for the same load."""
        with self._lock:
            if self._asleep is None:
                return None
            if self._waking is None:
                self._waking = Future()
                self._waking.set_running_or_notify_cancel()
                threading.Thread(target=self._wake, args=(self._waking,), name="wake", daemon=True).start()
            return self._waking

    def _wake(self, waking: Future[None]) -> None:
        failure = None
        try:
            with self._changing:
                with self._lock:
                    asleep = self._asleep
                    if asleep is not None:  # nobody chose another model meanwhile
                        self._status, self._since = EngineStatus("loading", asleep.name, "starting"), time.monotonic()
                if asleep is not None:
                    log.info("loading %s again", asleep.name)
                    self._load(asleep.name, asleep.load)
        except UserError as error:
            failure = error
        with self._lock:
            self._waking = None
        if failure is None:
            waking.set_result(None)
        else:
            waking.set_exception(failure)

    def unload(self, *, stop_running: bool = False) -> None:
        """Give the model's memory back. Does nothing without one."""
        with self._changing:
            self._close(stop_running, EngineStatus("empty"))

    def close(self) -> None:
        self.unload(stop_running=True)

    def _close(self, stop_running: bool, status: EngineStatus, asleep: Asleep | None = None) -> None:
        with self._lock:
            self._asleep = asleep
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
