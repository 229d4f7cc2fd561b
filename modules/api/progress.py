"""One reply while it is being made: what its events have told so far."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from modules.generation.stop_strings import Utf8Pieces
from modules.generation.tool_calls import Piece
from modules.generation.types import Finished, GenerationEvent, Started, TextDelta, Token, Usage, own_bytes


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
    """started: None until the prompt is read; finished: None until the end, and for good where the reply was stopped from outside.

    enough: whether all that was wanted has come, so that being stopped is no cut.
    """

    started: Started | None = None
    finished: Finished | None = None
    written: int = 0
    enough: bool = False
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
        if self.finished is not None:
            return self.finished.reason
        return "stop" if self.enough else "abort"

    @property
    def usage(self) -> Usage:
        if self.finished is not None:
            return self.finished.usage
        started = self.started or Started(0, 0)
        return Usage(started.prompt_tokens, self.written, started.cached_tokens)

    @property
    def dropped_messages(self) -> int:
        return self.started.dropped_messages if self.started is not None else 0


def lengths(tokens: Iterable[Token]) -> Iterator[int]:
    """How many characters each token adds to the text: a character of several tokens comes with the last of them."""
    pieces = Utf8Pieces()
    return (len(pieces.feed(own_bytes(token))) for token in tokens)


def with_tokens(pieces: Sequence[Piece], waiting: list[Token]) -> Iterator[tuple[Piece, list[Token]]]:
    """Each piece with the tokens that it was made of, which are taken from `waiting`: what a reader still holds stays there.

    A call has marks around it that are no piece: its last piece takes all that came.
    """
    for at, piece in enumerate(pieces):
        count = 0
        if isinstance(piece, str):
            covered = enumerate(accumulate(lengths(waiting)), 1)
            count = next((number for number, length in covered if length >= len(piece)), len(waiting))
        elif at == len(pieces) - 1:
            count = len(waiting)
        yield piece, waiting[:count]
        del waiting[:count]
