"""A request in the engine: its token sequences, its sampler, and the events that go to its reader. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from modules.generation.local.prefix_cache import CachedSequence, Key
from modules.generation.local.reply_text import ReplyText
from modules.generation.local.token_formatter import TokenFormatter
from modules.generation.reasoning import opened_by
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
    Usage,
)

if TYPE_CHECKING:
    from torch import Tensor

    from modules.generation.local.prompt import Prompt
    from modules.generation.samplers.batch_sampler import SequenceSampler, TokenLogprobs
    from modules.generation.samplers.contrastive import ContrastiveSearchState


class Sequence:
    """All tokens of one sequence, of which those of `cached` are computed.

    identity: what the prefix cache compares: the tokens, with images as negative numbers of their own.
    truncated: whether the tokens are a prompt without its oldest part.
    embed: computes the embeddings [tokens, hidden] of a prompt with images; called when the first of them is computed.
    prefix_donor: a running sequence whose first `shared` tokens are copied once it has computed them.
    """

    group: SequenceGroup

    def __init__(
        self,
        tokens: list[int],
        key: Key,
        identity: list[int] | None = None,
        embed: Callable[[], Tensor] | None = None,
        truncated: bool = False,
    ) -> None:
        self.tokens = tokens
        self.identity = tokens if identity is None else identity
        self.key = key
        self.truncated = truncated
        self._embed = embed
        self._embedded: Tensor | None = None
        self.cached: CachedSequence | None = None
        self.prefix_donor: Sequence | None = None
        self.shared = 0

    @property
    def computed(self) -> int:
        return len(self.cached.tokens) if self.cached is not None else 0

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    def embedded(self, start: int, count: int) -> Tensor | None:
        """The embeddings of a part of the prompt that has images in it; None where tokens say all."""
        if self._embed is None or not any(token < 0 for token in self.identity[start : start + count]):
            return None
        if self._embedded is None:
            self._embedded = self._embed()
        return self._embedded[start : start + count]

    def append(self, token: int) -> None:
        self.tokens.append(token)
        if self.identity is not self.tokens:
            self.identity.append(token)


class SequenceGroup:
    """One request, from its arrival to its `Finished`. Only the model's own thread touches it, save for `events`.

    sequences: the reply's own, and where guidance is on the one of the negative prompt.
    on_logits: called with the logits [1, vocabulary] that each token is chosen from, before any sampler.
    contrast: the state of contrastive search; the whole text is computed for it, and nothing reused.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: Prompt,
        sampler: SequenceSampler,
        sequences: Iterable[Sequence],
        text: ReplyText,
        eos: frozenset[int],
        max_tokens: int,
        formatter: TokenFormatter,
        contrast: ContrastiveSearchState | None = None,
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.sampler = sampler
        self.sequences = list(sequences)
        for sequence in self.sequences:
            sequence.group = self
        self.events = EventStream()
        self.arrived = time.monotonic()
        self.admitted: float | None = None
        self.reused = 0
        self.made = 0
        self.due = 0.0
        self.started = False
        """Whether its first token is made: from then on it decodes."""
        self.prompt_tokens: list[Token] = []
        self.on_logits: Callable[[Tensor], None] | None = None
        self.contrast = contrast
        self._text = text
        self._stops = StopTexts(request.sampling.stop)
        self._eos = eos
        self._max_tokens = max_tokens
        self._formatter = formatter
        self._prompt_formatter = replace(formatter, left_out=frozenset())  # a prompt is told with its markers
        self._place = 0
        self._first = self._last = self.arrived
        self._unsent = 0
        self._details: list[Token] = []
        self._stop_text: str | None = None

    @property
    def sequence(self) -> Sequence:
        """The reply's own."""
        return self.sequences[0]

    @property
    def repeatable(self) -> bool:
        """Whether the same request is to give the same reply."""
        return self.request.sampling.seed >= 0 or self.request.sampling.greedy

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.request.echo and self.request.logprobs is not None

    @property
    def can_reuse_prefix(self) -> bool:
        """Whether what the cache has of its prompt need not be computed again."""
        return self.contrast is None and not self.wants_prompt_logprobs

    @property
    def can_speculate(self) -> bool:
        """Whether draft tokens may be computed along with its next one."""
        return (
            self.started
            and len(self.sequences) == 1
            and self.contrast is None
            and not self.request.sampling.max_tokens_per_second
        )

    @property
    def left(self) -> int:
        """How many tokens it may still make."""
        return self._max_tokens - self.made

    def queued(self, place: int) -> None:
        if place != self._place:
            self._place = place
            self.events.put(Queued(place))

    def progress(self) -> None:
        """Tell how much of the prompt is computed."""
        self.events.put(Prefill(min(self.sequence.computed, len(self.prompt.tokens)), len(self.prompt.tokens)))

    def note_prompt(self, details: Iterable[TokenLogprobs | None], first: int) -> None:
        """Keep the log-probabilities of the prompt's tokens behind place `first`."""
        if first == 0:
            self.prompt_tokens = [self._prompt_formatter.token(self.prompt.tokens[0], None)]
        following = self.prompt.tokens[first + 1 :]
        self.prompt_tokens += [
            self._prompt_formatter.token(token, detail) for token, detail in zip(following, details, strict=False)
        ]

    def accept(self, token: int, detail: TokenLogprobs | None) -> FinishReason | None:
        """Take the next token: send its text; the reason where the reply is over. Raises UserError from the sampler."""
        self.sampler.accept(token)
        self._last = time.monotonic()
        if not self.started:
            self._start()
        self.made += 1
        self._unsent += 1
        sampling = self.request.sampling
        if token in self._eos and not sampling.ban_eos:
            return "stop"
        for sequence in self.sequences:
            sequence.append(token)
        if self.request.logprobs is not None:
            self._details.append(self._formatter.token(token, detail, head=self.made == 1 and self.prompt.starts_reply))
        self._send(self._stops.feed(self._text.feed(token)))
        if self._stops.found is not None:
            self._stop_text = self._stops.found
            return "stop"
        if self.sampler.finished:
            return "stop"
        if self.made >= self._max_tokens:
            return "length"
        if sampling.max_tokens_per_second:
            self.due = max(self.due, self._last) + 1 / sampling.max_tokens_per_second
        return None

    def finish(self, reason: FinishReason) -> None:
        self._send(self._stops.finish() if self._stop_text is None else "", last=True)
        first = self._first if self.started else self._last
        queued = (self.admitted or self.arrived) - self.arrived
        usage = Usage(len(self.prompt.tokens), self.made, self.reused)
        timings = Timings(queued, first - self.arrived, self._last - first)
        self.events.put(Finished(reason, usage, timings, self._stop_text))
        self.events.end()

    def _start(self) -> None:
        self.started, self._first = True, self._last
        echoed: tuple[Token, ...] = ()
        if self.request.echo:
            echoed = tuple(self.prompt_tokens or [self._prompt_formatter.token(token, None) for token in self.prompt.tokens])
        self.events.put(Started(len(self.prompt.tokens), self.reused, self.prompt.dropped, echoed, opened_by(self.prompt.text)))

    def _send(self, text: str, last: bool = False) -> None:
        if text or (last and self._details):
            self.events.put(TextDelta(text, self._unsent, tuple(self._details)))
            self._unsent, self._details = 0, []
