"""One reply while it is being made: what its events have told so far."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from modules.generation.types import Finished, GenerationEvent, Started, TextDelta, Token, Usage


@dataclass(frozen=True)
class Head:
    """What every piece of one answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def new(cls, prefix: str, model: str, system_fingerprint: str) -> Head:
        return cls(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model, system_fingerprint)


@dataclass
class Progress:
    """started: None until the prompt is read; finished: None until the end, and for good where the reply was stopped from outside."""

    started: Started | None = None
    finished: Finished | None = None
    written: int = 0
    prompt: tuple[Token, ...] = field(default=())

    def take(self, events: Iterable[GenerationEvent]) -> tuple[str, list[Token]]:
        """(text, tokens with their log-probabilities) that `events` add."""
        text, tokens = [], []
        for event in events:
            match event:
                case TextDelta():
                    text.append(event.text)
                    tokens += event.details
                    self.written += event.tokens
                case Started():
                    self.started, self.prompt = event, event.prompt
                case Finished():
                    self.finished = event
        return "".join(text), tokens

    @property
    def reason(self) -> str:
        """Why the reply ended; one that was stopped from outside is cut."""
        return self.finished.reason if self.finished is not None else "abort"

    @property
    def usage(self) -> Usage:
        if self.finished is not None:
            return self.finished.usage
        started = self.started or Started(0, 0)
        return Usage(started.prompt_tokens, self.written, started.cached_tokens)

    @property
    def dropped_messages(self) -> int:
        return self.started.dropped_messages if self.started is not None else 0
