"""One running reply: its sequences in the cache, its sampler, and the events that go to its reader."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modules.generation.local.prefix_cache import Key, Slot
from modules.generation.local.prompt import Prompt
from modules.generation.local.reply_text import ReplyText
from modules.generation.reasoning import opened_by
from modules.generation.samplers.batch_sampler import Detail, RowSampler
from modules.generation.samplers.contrastive import Contrast
from modules.generation.stop_strings import StopTexts
from modules.generation.stream import EventStream
from modules.generation.types import (
    Finished,
    FinishReason,
    GenerationRequest,
    Prefill,
    Queued,
    Started,
    TextDelta,
    Timings,
    Token,
    TokenAlternative,
    Usage,
)


class Lane:
    """One sequence of a row: all tokens it should have, of which `slot.tokens` are computed.

    identity is what the cache compares: the tokens, with pictures as negative numbers of their own.
    shortened: whether the tokens are a prompt without its oldest part.
    see: makes the embeddings [tokens, hidden] of a prompt with pictures, when the first of them is read.
    """

    def __init__(
        self, tokens: list[int], key: Key, identity: list[int] | None = None, see: Any = None, shortened: bool = False
    ) -> None:
        self.tokens = tokens
        self.identity = tokens if identity is None else identity
        self.key = key
        self.shortened = shortened
        self._see: Callable[[], Tensor] | None = see
        self._embedded: Tensor | None = None
        self.slot: Slot | None = None
        self.leader: Lane | None = None
        self.shared = 0

    @property
    def computed(self) -> int:
        return len(self.slot.tokens) if self.slot is not None else 0

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    def embedded(self, start: int, count: int) -> Tensor | None:
        """The embeddings of a part of the prompt that has pictures in it; None where tokens say all."""
        if self._see is None or not any(token < 0 for token in self.identity[start : start + count]):
            return None
        if self._embedded is None:
            self._embedded = self._see()
        return self._embedded[start : start + count]

    def append(self, token: int) -> None:
        self.tokens.append(token)
        if self.identity is not self.tokens:
            self.identity.append(token)


Spelling = tuple[str, bytes | None]
"""A token's text, and its bytes where they are not those of the text."""


@dataclass(frozen=True)
class Naming:
    """How tokens are called in details.

    spelled: a token within a text. at_head: the first of a reply of its own, which may lose a space there.
    left_out: the tokens that add nothing to a text.
    """

    spelled: Callable[[int], Spelling]
    at_head: Callable[[int], Spelling]
    left_out: frozenset[int] = frozenset()

    def token(self, token: int, detail: Detail | None, *, head: bool = False) -> Token:
        text, raw = (self.at_head if head else self.spelled)(token)
        raw = b"" if token in self.left_out else raw
        if detail is None:
            return Token(token, text, raw=raw)
        pairs = zip(detail.ids.tolist(), detail.logprobs.tolist(), strict=True)
        alternatives = tuple(self.alternative(other, value, head=head) for other, value in pairs)
        return Token(token, text, float(detail.logprob), alternatives, raw)

    def alternative(self, token: int, logprob: float, *, head: bool = False) -> TokenAlternative:
        text, raw = (self.at_head if head else self.spelled)(token)
        return TokenAlternative(token, text, logprob, b"" if token in self.left_out else raw)


class Row:
    """From the request to its `Finished`. Only the model's own thread touches it, save for `events`.

    look: called with the scores [1, vocabulary] that each token is chosen from, before any sampler.
    contrast: where candidates for the next token are compared with the text; all of it is read for it, nothing reused.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: Prompt,
        sampler: RowSampler,
        lanes: Sequence[Lane],
        text: ReplyText,
        eos: frozenset[int],
        most_tokens: int,
        naming: Naming,
        contrast: Contrast | None = None,
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.sampler = sampler
        self.lanes = list(lanes)
        self.events = EventStream()
        self.arrived = time.monotonic()
        self.admitted: float | None = None
        self.reused = 0
        self.made = 0
        self.due = 0.0
        self.prompt_details: list[Token] = []
        self.look: Callable[[Tensor], None] | None = None
        self.contrast = contrast
        self._text = text
        self._stops = StopTexts(request.sampling.stop)
        self._eos = eos
        self._most = most_tokens
        self._naming = naming
        self._shown = replace(naming, left_out=frozenset())  # a prompt is told with its markers
        self._place = 0
        self._first: float | None = None
        self._last = self.arrived
        self._unsent = 0
        self._details: list[Token] = []
        self._stop_text: str | None = None

    @property
    def lane(self) -> Lane:
        return self.lanes[0]

    @property
    def started(self) -> bool:
        """Whether its first token is made: from then on it decodes."""
        return self._first is not None

    @property
    def repeatable(self) -> bool:
        """Whether the same request is to give the same reply."""
        return self.request.sampling.seed >= 0 or self.request.sampling.greedy

    @property
    def wants_prompt_details(self) -> bool:
        return self.request.echo and self.request.logprobs is not None

    @property
    def left(self) -> int:
        """How many tokens it may still make."""
        return self._most - self.made

    def queued(self, place: int) -> None:
        if place != self._place:
            self._place = place
            self.events.put(Queued(place))

    def progress(self) -> None:
        """Tell how much of the prompt is read."""
        self.events.put(Prefill(min(self.lane.computed, len(self.prompt.tokens)), len(self.prompt.tokens)))

    def note_prompt(self, scores: Tensor, first: int) -> None:
        """Keep the log-probabilities of the prompt: scores [count, vocabulary] after its places from `first` on."""
        if first == 0:
            self.prompt_details = [self._shown.token(self.prompt.tokens[0], None)]
        following = self.prompt.tokens[first + 1 : first + 1 + len(scores)]
        known = torch.log_softmax(scores[: len(following)].float(), -1)
        for line, token in zip(known, following, strict=True):
            best = torch.topk(line, self.request.logprobs or 0)
            self.prompt_details.append(self._shown.token(token, Detail(line[token], best.indices, best.values)))

    def accept(self, token: int, detail: Detail | None) -> FinishReason | None:
        """Take the next token: show its text, and say why the reply is over, if it is. Raises UserError from the sampler."""
        self.sampler.accept(token)
        self._last = time.monotonic()
        if self._first is None:
            self._start()
        self.made += 1
        self._unsent += 1
        if token in self._eos and not self.request.sampling.ban_eos:
            return "stop"
        for lane in self.lanes:
            lane.append(token)
        if self.request.logprobs is not None:
            self._details.append(self._naming.token(token, detail, head=self.made == 1 and self.prompt.starts_reply))
        self._send(self._stops.feed(self._text.feed(token)))
        if self._stops.found is not None:
            self._stop_text = self._stops.found
            return "stop"
        if self.sampler.finished:
            return "stop"
        if self.made >= self._most:
            return "length"
        if self.request.sampling.max_tokens_per_second:
            self.due = max(self.due, self._last) + 1 / self.request.sampling.max_tokens_per_second
        return None

    def finish(self, reason: FinishReason) -> None:
        self._send(self._stops.finish() if self._stop_text is None else "", last=True)
        first = self._first or self._last
        queued = (self.admitted or self.arrived) - self.arrived
        usage = Usage(len(self.prompt.tokens), self.made, self.reused)
        timings = Timings(queued, first - self.arrived, self._last - first)
        self.events.put(Finished(reason, usage, timings, self._stop_text))
        self.events.end()

    def _start(self) -> None:
        self._first = self._last
        echoed: tuple[Token, ...] = ()
        if self.request.echo:
            echoed = tuple(self.prompt_details) or tuple(self._shown.token(token, None) for token in self.prompt.tokens)
        self.events.put(Started(len(self.prompt.tokens), self.reused, self.prompt.dropped, echoed, opened_by(self.prompt.text)))

    def _send(self, text: str, last: bool = False) -> None:
        if text or (last and self._details):
            self.events.put(TextDelta(text, self._unsent, tuple(self._details)))
            self._unsent, self._details = 0, []
