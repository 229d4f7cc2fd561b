"""Replies are jobs of the server: each goes on, and is kept, whether or not a browser watches."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from modules.chats.records import Figures, State, StoredMessage, TokenStretch
from modules.chats.store import ChatHistory, ChatStore
from modules.errors import UserError
from modules.generation.leased_model import LeasedModel
from modules.generation.stream import EventStream
from modules.generation.types import (
    Finished,
    GenerationEvent,
    GenerationRequest,
    LoadedModel,
    Prefill,
    Queued,
    Started,
    TextDelta,
    Token,
)

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
"""Between two attempts to keep a reply that is over, where the disk does not take it."""
SAVE_SECONDS = 0.5
"""Between two writes of a reply: what is on its way when the server dies comes on top, and a second is what may be lost."""
Phase = Literal["waiting", "reading", "writing", "over"]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Progress:
    """How far a reply is. place: in the queue; read of prompt: tokens of the prompt that are done; version: grows with each change.

    unsaved: why what there is could not be kept yet.
    """

    version: int
    phase: Phase
    state: State
    text: str
    figures: Figures
    place: int = 0
    read: int = 0
    prompt: int = 0
    unsaved: str = ""


class Reply:
    """One reply being written, a message's or a page's. Safe to look at from any thread.

    text: what it goes on from. keep: stores what there is, twice a second and at the end, with the tokens since.
    prompt_hash: asked for once, for the figures.
    """

    def __init__(
        self,
        text: str,
        figures: Figures,
        events: EventStream,
        keep: Callable[[Progress, tuple[Token, ...]], None],
        prompt_hash: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.at = len(text)
        self.tokens: list[Token] = []
        """Those of this run whose probabilities are told, so far; it only grows."""
        self._kept_tokens = 0
        self._prompt_hash = prompt_hash
        self._events = events
        self._keep = keep
        self._lock = threading.Lock()
        self._pieces = [text]
        self._earlier_tokens = figures.tokens
        self._progress = Progress(0, "waiting", "streaming", "", figures)
        self._begun = time.monotonic()
        self._first: float | None = None
        self._saved_version = 0
        self._save_due = self._begun + SAVE_SECONDS
        self._given_up = threading.Event()
        self._on_change: list[Callable[[], None]] = []

    @property
    def progress(self) -> Progress:
        with self._lock:
            if len(self._pieces) > 1:
                self._pieces = ["".join(self._pieces)]
            return replace(self._progress, text=self._pieces[0])

    @property
    def version(self) -> int:
        return self._progress.version

    def on_change(self, version: int, call: Callable[[], None]) -> None:
        """Call `call` once, from any thread, when the reply is newer than `version`; at once where it is already."""
        with self._lock:
            if self._progress.version == version:
                self._on_change.append(call)
                return
        call()

    def stop(self) -> None:
        """End the reply; what is there stays."""
        self._events.close()

    def give_up(self) -> None:
        """Wait no longer for a disk that takes the reply."""
        self._given_up.set()

    def run(self) -> None:
        """Follow the events to their end and keep what they bring. For the reply's own thread."""
        ending: Figures | None = None
        try:
            while (event := self._next()) is not None:
                ending = self._take(event)
                if time.monotonic() >= self._save_due:
                    self._save()
            over = ending or self._ended("stopped")
        except UserError as error:
            over = self._ended("failed", error.message)
        except Exception as error:
            log.exception("a reply failed")
            over = self._ended("failed", f"The model failed: {error or type(error).__name__}. The server's log says more.")
        finally:
            self._events.close()
        try:
            over = replace(over, prompt_hash=self._prompt_hash())
        except Exception:
            log.exception("the prompt of a reply could not be told")
        state: State = "whole" if over.ending in ("stop", "length") else "cut"
        self._change(state=state, figures=over)
        while not self._save():  # what people have seen is not let go of
            if self._given_up.wait(RETRY_SECONDS):
                self._save()
                break
        self._change(phase="over")  # whoever reads the stored message now finds all of it

    def _next(self) -> GenerationEvent | None:
        while True:
            try:
                return self._events.get(timeout=max(0.01, self._save_due - time.monotonic()))
            except TimeoutError:
                self._save()

    def _take(self, event: GenerationEvent) -> Figures | None:
        """Note what `event` says; the final figures if it is the last one."""
        figures = self._progress.figures
        match event:
            case Queued(place):
                self._change(phase="waiting", place=place)
            case Prefill(done, total):
                self._change(phase="reading", read=done, prompt=total)
            case Started(prompt_tokens, cached_tokens, dropped):
                figures = replace(figures, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, dropped_messages=dropped)
                if self.at == 0:  # else the prompt ended with the beginning of the reply
                    figures = replace(figures, opened=event.opened)
                self._change(phase="writing", figures=figures)
            case TextDelta(text, tokens, details):
                self.tokens.extend(details)
                self._write(text, tokens)
            case Finished(reason, usage, timings):
                return replace(
                    figures,
                    tokens=self._earlier_tokens + usage.completion_tokens,
                    tokens_per_second=timings.tokens_per_second(usage.completion_tokens),
                    first_token=timings.first_token,
                    prompt_tokens=usage.prompt_tokens,
                    cached_tokens=usage.cached_tokens,
                    ending="stopped" if reason == "abort" else reason,
                )
        return None

    def _write(self, text: str, tokens: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        figures = self._progress.figures
        figures = replace(figures, tokens=figures.tokens + tokens, first_token=self._first - self._begun)
        made = figures.tokens - self._earlier_tokens
        if made > 1 and now > self._first:
            figures = replace(figures, tokens_per_second=(made - 1) / (now - self._first))
        with self._lock:
            self._pieces.append(text)
        self._change(phase="writing", figures=figures)

    def _ended(self, ending: Literal["stopped", "failed"], error: str | None = None) -> Figures:
        return replace(self._progress.figures, ending=ending, error=error)

    def _change(self, **values: object) -> None:
        with self._lock:
            self._progress = replace(self._progress, version=self._progress.version + 1, **values)  # type: ignore[arg-type]
            waiting, self._on_change = self._on_change, []
        for call in waiting:
            call()

    def _save(self) -> bool:
        """Whether all there is, is kept."""
        progress = self.progress
        self._save_due = time.monotonic() + SAVE_SECONDS
        if progress.version == self._saved_version:
            return True
        fresh = tuple(self.tokens[self._kept_tokens :])
        try:
            self._keep(progress, fresh)
            self._saved_version = progress.version
            self._kept_tokens += len(fresh)
        except (sqlite3.Error, UserError) as error:
            if progress.unsaved != str(error):
                log.error("a reply could not be saved: %s", error)
                self._change(unsaved=str(error))
            return False
        if progress.unsaved:
            self._change(unsaved="")
        return True


@dataclass(frozen=True)
class Asked:
    """What one reply is made of: the request, and the preset that its sampling is."""

    request: GenerationRequest
    preset: str | None = None


def prompt_hash(model: LoadedModel, request: GenerationRequest) -> str | None:
    """16 hexadecimal digits that tell one prompt from another, by its tokens; None where the model does not show them."""
    try:
        tokens = model.render(request).tokens
    except UserError:
        return None
    return hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in tokens)).hexdigest()[:16]


class RunningReplies(Generic[Key]):
    """Replies being written, each in a thread of its own. Closing it stops them and keeps what they have."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Key, tuple[Reply, threading.Thread]] = {}

    def start(self, key: Key, reply: Reply) -> None:
        """Follow `reply` to its end."""
        thread = threading.Thread(target=self._follow, args=(key, reply), name=f"reply-{key}", daemon=True)
        with self._lock:
            self._running[key] = (reply, thread)
        thread.start()

    def _follow(self, key: Key, reply: Reply) -> None:
        try:
            reply.run()
        finally:
            with self._lock:
                if self._running.get(key, (None,))[0] is reply:
                    del self._running[key]

    def get(self, key: Key) -> Reply | None:
        """The reply that is being written under `key`; None where none is."""
        with self._lock:
            entry = self._running.get(key)
        return entry[0] if entry else None

    def stop(self, key: Key) -> bool:
        """End one reply and wait until it is kept. False where it was not being written."""
        with self._lock:
            entry = self._running.get(key)
        if entry is None:
            return False
        reply, thread = entry
        reply.stop()
        thread.join(timeout=5)
        return True

    def close(self) -> None:
        """End all replies. Idempotent."""
        with self._lock:
            running = list(self._running.values())
        for reply, _ in running:
            reply.give_up()
            reply.stop()
        for _, thread in running:
            thread.join(timeout=5)


class Replies(RunningReplies[tuple[str, int]]):
    """All replies of chats being written, by the owner and the id of their messages."""

    def __init__(self, store: ChatStore) -> None:
        super().__init__()
        self._store = store

    def for_owner(self, owner: str) -> OwnedReplies:
        """The replies of one user."""
        return OwnedReplies(self, self._store.for_owner(owner), owner)


class OwnedReplies:
    """The replies of one user that are being written, by the ids of their messages."""

    def __init__(self, jobs: Replies, history: ChatHistory, owner: str) -> None:
        self._jobs = jobs
        self._history = history
        self._owner = owner

    def get(self, message_id: int) -> Reply | None:
        """The reply that is being written into a message; None where none is, and for the messages of others."""
        return self._jobs.get((self._owner, message_id))

    def stop(self, message_id: int) -> bool:
        """End a reply and wait until it is kept. False where it was not being written, and for the messages of others."""
        return self._jobs.stop((self._owner, message_id))

    def begin(
        self,
        model: LeasedModel,
        request: GenerationRequest,
        make: Callable[[], StoredMessage],
        *,
        preset: str | None = None,
    ) -> StoredMessage:
        """Ask the model that the request was built for, and write its answer into the message of `make` (state "streaming").

        Where the model refuses the request, UserError is raised and `make` is not called: nothing is written.
        """
        return self.begin_all(model, [Asked(request, preset)], lambda: [make()])[0]

    def begin_all(
        self, model: LeasedModel, asked: Sequence[Asked], make: Callable[[], Sequence[StoredMessage]]
    ) -> list[StoredMessage]:
        """Like `begin`, for several replies at once, which share the model's batch: all of them, or none."""
        streams: list[EventStream] = []
        try:
            for ask in asked:
                streams.append(model.stream(ask.request))
            with self._history.transaction():
                messages = list(make())
                begun = [
                    self._prepare(ask, message, events, model)
                    for ask, message, events in zip(asked, messages, streams, strict=True)
                ]
        except BaseException:
            for events in streams:
                events.close()
            raise
        for message, reply in zip(messages, begun, strict=True):
            self._jobs.start((self._owner, message.id), reply)
        return messages

    def _prepare(self, ask: Asked, message: StoredMessage, events: EventStream, model: LoadedModel) -> Reply:
        request = ask.request
        figures = replace(
            message.figures,
            adapter=request.adapter,
            adapter_strength=request.adapter_strength if request.adapter else None,
            preset=ask.preset,
            seed=request.sampling.seed,
            context_length=model.context_length,
            ending=None,
            error=None,
        )
        self._history.messages.write(
            message.id,
            message.content,
            "streaming",
            figures,
            model=model.name,
            sampling=request.sampling.model_dump(mode="json", exclude_defaults=True),
        )

        def keep(progress: Progress, fresh: tuple[Token, ...]) -> None:
            stretch = TokenStretch(len(message.content), fresh) if fresh else None
            self._history.messages.write(message.id, progress.text, progress.state, progress.figures, tokens=stretch)

        return Reply(message.content, figures, events, keep, lambda: prompt_hash(model, request))
