"""Model manager: one loaded model, leases that pin it for a request, its replacement, and its unloading while idle.

A lease pins the model from building a request to `model.stream(request)`, so that a request built for one model cannot reach
another. What a replacement means for leases that are held:

- Without `stop_running` it waits: leases are used to their end, their replies run on the old model, then that is closed.
- With `stop_running` leases are revoked: replies end, and what a lease still begins is refused, as new requests are.
"""

from __future__ import annotations

import asyncio
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
from modules.generation.leased_model import LeasedModel
from modules.generation.stream import EventStream
from modules.generation.types import Finished, GenerationRequest, LoadedModel

log = logging.getLogger(__name__)
LINES_KEPT = 200

Load = Callable[[Callable[[str], None]], LoadedModel]
"""Makes a model, and reports its progress in short sentences meanwhile."""


State = Literal["empty", "loading", "ready", "asleep"]


@dataclass(frozen=True)
class ManagerStatus:
    """State of the manager, as the page shows it: `name` is the model that is loaded, being loaded, or unloaded while idle.

    error: why the last load failed; in the state asleep, how the engine of the model died.
    """

    state: State
    name: str | None = None
    progress: str = ""
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class UnloadedModel:
    """A model that the next request loads again: it was unloaded while idle, or its engine died.

    What requests can name meanwhile, and how it is loaded.
    """

    name: str
    context_length: int
    adapters: tuple[str, ...]
    load: Load


class ModelManager:
    """One model at a time; any number of requests on it. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._model: LoadedModel | None = None
        self._loaded_by: Load | None = None
        self._leases: set[LeasedModel] = set()
        self._streams: set[EventStream] = set()
        self._starting = 0
        self._status = ManagerStatus("empty")
        self._since = 0.0
        self._load_log: deque[str] = deque(maxlen=LINES_KEPT)
        self._changing = threading.Semaphore()
        self._unloaded: UnloadedModel | None = None
        self._reloading: Future[None] | None = None
        self.loads = 0
        """How many loads were begun: one that fails at once is seen by it."""
        self.speed: float | None = None
        """Tokens per second of the last reply of the loaded model that was long enough to tell."""
        self.last_used = time.monotonic()
        self.on_finished: list[Callable[[EventStream], None]] = []
        """Called with every stream that is over, for those who count."""

    @property
    def status(self) -> ManagerStatus:
        with self._lock:
            status = self._status
            if status.state != "loading":
                return status
            return ManagerStatus("loading", status.name, status.progress, time.monotonic() - self._since)

    @property
    def load_log(self) -> tuple[str, ...]:
        """What the last load has said, line by line."""
        with self._lock:
            return tuple(self._load_log)

    @property
    def unloaded(self) -> UnloadedModel | None:
        """The model that the next request loads again; it stays so until it is there, or another is chosen."""
        with self._lock:
            return self._unloaded

    @property
    def loaded(self) -> LoadedModel | None:
        """The loaded model, to show what it is; requests are built and answered under a lease."""
        with self._lock:
            return self._model

    # --- requests

    def lease(self, *, wait: bool = False) -> LeasedModel:
        """`with manager.lease() as model:` pins the loaded model until the block ends. Raises Unavailable where none is loaded.

        wait: load a model that was unloaded while idle first, which takes its time; event loops await `ready` instead.
        """
        if wait and (reloading := self.reload()):
            reloading.result()
        with self._lock:
            self.last_used = time.monotonic()
            if self._model is None:
                raise self._unavailable()
            leased = LeasedModel(self._model, self._stream, self._give_back)
            self._leases.add(leased)
            return leased

    async def ready(self) -> None:
        """Wait until a model that was unloaded while idle is loaded again; no thread waits. Raises UserError where that fails."""
        if reloading := self.reload():
            await asyncio.wrap_future(reloading)

    def _unavailable(self) -> Unavailable:
        """Why no model is loaded, for requests; the caller holds the lock."""
        if self._status.state == "loading":
            return Unavailable(f"{self._status.name} is still being loaded. Try again in a moment.")
        if self._status.state == "asleep":
            return Unavailable("The model is not loaded now: a message loads it again.")
        if self._status.error:
            return Unavailable(f"No model is loaded: {self._status.error}")
        return Unavailable("No model is loaded. Choose one on the Models tab, or start the server with --model NAME.")

    def _give_back(self, leased: LeasedModel) -> None:
        with self._lock:
            self._leases.discard(leased)
            self._lock.notify_all()

    def _stream(self, leased: LeasedModel, model: LoadedModel, request: GenerationRequest) -> EventStream:
        with self._lock:
            self.last_used = time.monotonic()
            if leased not in self._leases:
                if self._model is None:
                    raise self._unavailable()
                raise Unavailable(f"{model.name} was replaced by another model meanwhile. Try again.")
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
        for finished in self.on_finished:
            finished(events)

    def _lose(self, model: LoadedModel, error: EngineGone) -> None:
        """Let go of a model whose engine has died; the next request loads it again. A thread does it: closing may take a while."""

        def let_go() -> None:
            with self._changing:
                with self._lock:
                    if self._model is not model or self._loaded_by is None:  # another was quicker
                        return
                    self._model = None
                    self._unloaded = UnloadedModel(model.name, model.context_length, model.adapters, self._loaded_by)
                    self._status = ManagerStatus("asleep", model.name, error=error.message)
                log.error("%s is not loaded any more: %s", model.name, error.message)
                model.close()

        threading.Thread(target=let_go, name="engine is gone", daemon=True).start()

    # --- replacement

    def stop_all(self) -> int:
        """Close every running stream; returns how many there were."""
        with self._lock:
            running = list(self._streams)
        for events in running:
            events.close()
        return len(running)

    def replace(self, name: str, load: Load, *, stop_running: bool = False) -> LoadedModel:
        """Let leases and running replies end (or stop them), close the model, load the next. Raises UserError.

        The old model is closed first, so that its memory is free for the new one.
        """
        with self._changing:
            self._close(stop_running, ManagerStatus("loading", name, "starting"))
            return self._load(name, load)

    def _load(self, name: str, load: Load) -> LoadedModel:
        """For whoever holds _changing, while no model is loaded."""
        with self._lock:
            self.loads += 1
            self._load_log.clear()
        try:
            model = load(self._report)
        except UserError as error:
            self._set(ManagerStatus("empty", error=error.message))
            raise
        except Exception as error:
            log.exception("loading %s failed", name)
            message = f"{name} could not be loaded: {error or type(error).__name__}"
            self._set(ManagerStatus("empty", error=message))
            raise Unavailable(message) from error
        with self._lock:
            self._model = model
            self._loaded_by = load
            self.speed = None
            self._unloaded = None
            self._status = ManagerStatus("ready", model.name, seconds=time.monotonic() - self._since)
            self.last_used = time.monotonic()
        return model

    def unload_idle(self, load: Load, *, idle: float = 0.0) -> bool:
        """Give the memory of a model back that nobody has used for `idle` seconds; the next request brings it back by `load`.

        False where there is none, or where it is in use.
        """
        with self._changing:
            with self._lock:
                model = self._model
                used = self._leases or self._streams or self._starting or time.monotonic() - self.last_used < idle
                if model is None or used:
                    return False
                unloaded = UnloadedModel(model.name, model.context_length, model.adapters, load)
            self._close(False, ManagerStatus("asleep", model.name), unloaded)
            return True

    def reload(self) -> Future[None] | None:
        """Begin to load the model that was unloaded while idle; None where there is none. All who ask wait for the same load."""
        with self._lock:
            if self._unloaded is None:
                return None
            if self._reloading is None:
                self._reloading = Future()
                self._reloading.set_running_or_notify_cancel()
                threading.Thread(target=self._reload, args=(self._reloading,), name="reload", daemon=True).start()
            return self._reloading

    def _reload(self, reloading: Future[None]) -> None:
        failure = None
        try:
            with self._changing:
                with self._lock:
                    unloaded = self._unloaded
                    if unloaded is not None:  # nobody chose another model meanwhile
                        self._status, self._since = ManagerStatus("loading", unloaded.name, "starting"), time.monotonic()
                if unloaded is not None:
                    log.info("loading %s again", unloaded.name)
                    self._load(unloaded.name, unloaded.load)
        except UserError as error:
            failure = error
        with self._lock:
            self._reloading = None
        if failure is None:
            reloading.set_result(None)
        else:
            reloading.set_exception(failure)

    def unload(self, *, stop_running: bool = False) -> None:
        """Give the model's memory back. Does nothing without one."""
        with self._changing:
            self._close(stop_running, ManagerStatus("empty"))

    def close(self) -> None:
        self.unload(stop_running=True)

    def _close(self, stop_running: bool, status: ManagerStatus, unloaded: UnloadedModel | None = None) -> None:
        with self._lock:
            self._unloaded = unloaded
            model, self._model = self._model, None
            self._status = status
            self._since = time.monotonic()
            if stop_running:
                self._leases.clear()
        if model is None:
            return
        if stop_running:
            with self._lock:
                self._lock.wait_for(lambda: not self._starting)
            self.stop_all()
        with self._lock:
            self._lock.wait_for(lambda: not self._leases and not self._streams and not self._starting)
        model.close()

    def _set(self, status: ManagerStatus) -> None:
        with self._lock:
            self._status = status

    def _report(self, progress: str) -> None:
        with self._lock:
            if self._load_log and _without_numbers(self._load_log[-1]) == _without_numbers(progress):
                self._load_log.pop()  # the same with another percentage
            self._load_log.append(progress)
            if self._status.state == "loading":
                self._status = ManagerStatus("loading", self._status.name, progress)


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+", "", line)
