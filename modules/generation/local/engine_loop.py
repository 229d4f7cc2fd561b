"""Engine loop: the thread that owns a model's weights. Each turn it schedules a step, computes it, and ends what is over."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from modules.errors import Unavailable, UserError
from modules.generation.local.prefix_cache import PrefixCache
from modules.generation.local.scheduler import ScheduledTokens, Scheduler
from modules.generation.local.sequence import SequenceGroup
from modules.generation.local.step_executor import StepExecutor
from modules.generation.types import ModelStatus

log = logging.getLogger(__name__)
T = TypeVar("T")
LONGEST_PAUSE = 0.05
"""Seconds until it is looked again whether something can be computed."""


class EngineLoop:
    """Started at once; `close` ends it. `submit`, `call` and `status` are for any thread."""

    def __init__(self, scheduler: Scheduler, executor: StepExecutor, *, threads: int = 0) -> None:
        """threads: of torch's on the CPU; 0 leaves them as they are."""
        self._scheduler = scheduler
        self._executor = executor
        self._threads = threads
        self._changed = threading.Condition()
        self._tasks: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    # --- for any thread

    def submit(self, group: SequenceGroup) -> None:
        """Put a request in the queue. Raises Unavailable once the model is being closed."""
        with self._changed:
            if self._closing:
                raise Unavailable("The model is being unloaded.")
            self._scheduler.add(group)
            self._changed.notify()
        group.events.on_close(self._wake)

    def call(self, work: Callable[[], T]) -> T:
        """Run `work` on the model's thread between two steps, and wait for it."""
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise Unavailable("The model is being unloaded.")
            self._tasks.append((work, future))
            self._changed.notify()
        return future.result()

    @property
    def cache(self) -> PrefixCache:
        """For work that `call` runs."""
        return self._scheduler.cache

    def users_of(self, adapter: str) -> int:
        """How many running and waiting requests have that adapter."""
        return self._scheduler.users_of(adapter)

    def status(self) -> ModelStatus:
        scheduler, cache = self._scheduler, self._scheduler.cache
        return ModelStatus(len(scheduler.running), len(scheduler.waiting), cache.bytes, cache.limit, cache.tokens)

    def close(self) -> None:
        """End all requests with an error, and the thread. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _wake(self) -> None:
        # Also called by this very thread when it ends a request, hence no waiting for the lock's owner: a Condition is re-entrant.
        with self._changed:
            self._changed.notify()

    # --- the model's thread

    @torch.inference_mode()
    def _run(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        while self._has_work():
            self._do_tasks()
            self._remove_closed()
            if not self._step():
                self._pause()
        self._end_all()

    def _has_work(self) -> bool:
        """Wait for something to do; False once the model is being closed."""
        scheduler = self._scheduler
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._tasks or scheduler.waiting or scheduler.running)
            return not self._closing

    def _end_all(self) -> None:
        gone = Unavailable("The model was unloaded.")
        for group in self._scheduler.clear():
            group.events.fail(gone)
        while self._tasks:
            self._tasks.popleft()[1].set_exception(gone)

    def _do_tasks(self) -> None:
        while self._tasks:
            work, future = self._tasks.popleft()
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - it is raised where the work was asked for
                future.set_exception(error)

    def _remove_closed(self) -> None:
        for group in [group for group in self._scheduler.running if group.events.closed]:
            self._scheduler.remove(group)
        if any(group.events.closed for group in self._scheduler.waiting):
            with self._changed:
                self._scheduler.remove_waiting([group for group in self._scheduler.waiting if group.events.closed])

    def _pause(self) -> None:
        """Nothing can be computed now: wait for the next request that is due, or for news."""
        now = time.monotonic()
        due = self._scheduler.next_due()
        seconds = LONGEST_PAUSE if due is None else min(max(due - now, 0.001), LONGEST_PAUSE)
        with self._changed:
            if not (self._closing or self._tasks):
                self._changed.wait(seconds)

    def _step(self) -> bool:
        """Compute one step. False where there is nothing to compute now."""
        step = self._scheduler.schedule()
        for group, error in step.failed:
            _fail(group, error)
        for place, group in enumerate(list(self._scheduler.waiting), 1):
            group.queued(place)
        if step.scheduled:
            began = time.monotonic()
            self._execute(step.scheduled)
            self._scheduler.note(step, time.monotonic() - began)
        return bool(step.scheduled or step.failed)

    def _execute(self, scheduled: Sequence[ScheduledTokens]) -> None:
        try:
            outcome = self._executor.execute(scheduled)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the thread
            self._recover(scheduled, error)
            return
        for group, reason in outcome.finished:
            self._scheduler.remove(group)
            group.finish(reason)
        for group, error in outcome.failed:
            self._scheduler.remove(group)
            _fail(group, error)

    def _recover(self, scheduled: Sequence[ScheduledTokens], error: Exception) -> None:
        """After a failed forward pass: free memory, or find the request at fault by computing each by itself."""
        for item in scheduled:
            if item.sequence.cached is not None:
                item.sequence.cached.recover()
        groups = list(dict.fromkeys(item.sequence.group for item in scheduled))
        if is_out_of_memory(error):
            log.warning("out of memory: %s", error)
            if not self._scheduler.cache.forget_idle():
                newest = self._scheduler.newest(groups)
                self._scheduler.remove(newest)
                _fail(newest, Unavailable("The memory is full. Try again when fewer replies are running."))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        elif len(groups) == 1:
            self._scheduler.remove(groups[0])
            _fail(groups[0], error)
        else:
            for group in groups:
                self._execute([item for item in scheduled if item.sequence.group is group])


def _fail(group: SequenceGroup, error: Exception) -> None:
    if not isinstance(error, UserError):
        log.error("a reply failed", exc_info=error)
        error = Unavailable(_explained(error))
    group.events.fail(error)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _explained(error: BaseException) -> str:
    if is_out_of_memory(error):
        return "The memory is full. Try again when fewer replies are running."
    return f"The model failed: {error or type(error).__name__}"
