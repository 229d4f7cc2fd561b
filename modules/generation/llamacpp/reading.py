"""llama.cpp's answers as events: whole characters, no part of a stop text, counts, log-probabilities, times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from math import log
from typing import Any

from modules.generation.sampling import SamplingParams
from modules.generation.text import REPLACEMENT, StopTexts
from modules.generation.types import (
    Finished,
    FinishReason,
    GenerationEvent,
    Prefill,
    Started,
    TextDelta,
    Timings,
    Token,
    TokenAlternative,
    Usage,
)


class ReplyReader:
    """Reads the parts of one reply, which may come from several completions one after the other.

    marker: the text of a token that llama.cpp leaves out (an end-of-turn mark), asked for where markers are wanted.
    ids: the tokens made so far; `ids_known` says whether none was hidden by a character that took several tokens.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        prompt_tokens: int,
        alternatives: int | None,
        marker: Callable[[int], str],
        started: Callable[[int], Started],
        asked: float,
    ) -> None:
        self._marker = None if sampling.skip_special_tokens else marker
        self._stops = StopTexts(sampling.stop)
        self._alternatives = alternatives
        self._make_started = started
        self._prompt_tokens = prompt_tokens
        self._asked = asked
        self._admitted = time.perf_counter()
        self._first = self._last = 0.0
        self._cached: int | None = None
        self._started = False
        self._tokens_before = 0
        self._held_details: list[Token] = []
        self._reason: FinishReason = "stop"
        self.tokens = 0
        self.ids: list[int] = []
        self.text = ""

    @property
    def ids_known(self) -> bool:
        return len(self.ids) == self.tokens

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come: the rest of the completion is not wanted."""
        return self._stops.found is not None

    @property
    def over(self) -> bool:
        """Whether a stop text or the model has ended the reply, and not its allowance."""
        return self.stopped or self._reason == "stop"

    def read(self, parts: Iterable[Any]) -> Iterator[GenerationEvent]:
        """The events of one completion, up to a stop text."""
        self._tokens_before = self.tokens
        for part in parts:
            if part.get("stop"):
                self._reason = "length" if part.get("stop_type") == "limit" else "stop"
                self.tokens = self._tokens_before + part["tokens_predicted"]
            elif progress := part.get("prompt_progress"):
                yield from self._prefill(progress)
            elif part["tokens_predicted"]:
                yield from self._text(part)
                if self.stopped:
                    return

    def finish(self) -> Iterator[GenerationEvent]:
        """What was held back, and the end. A prompt that was answered by nothing is announced too."""
        yield from self._start()
        if rest := self._stops.finish():
            yield TextDelta(rest, 0)
        now = time.perf_counter()
        times = Timings(
            queued=self._admitted - self._asked,
            first_token=(self._first or now) - self._asked,
            decode=self._last - self._first,
        )
        usage = Usage(self._prompt_tokens, self.tokens, self._cached or 0)
        yield Finished("stop" if self.stopped else self._reason, usage, times, self._stops.found)

    def _prefill(self, progress: dict[str, int]) -> Iterator[GenerationEvent]:
        if self._cached is None:
            self._cached = progress["cache"]
        if not self._started:
            yield Prefill(progress["processed"], progress["total"])

    def _start(self) -> Iterator[GenerationEvent]:
        if not self._started:
            self._started = True
            yield self._make_started(self._cached or 0)

    def _text(self, part: dict[str, Any]) -> Iterator[GenerationEvent]:
        self._last = time.perf_counter()
        self._first = self._first or self._last
        yield from self._start()
        before, self.tokens = self.tokens, self._tokens_before + part["tokens_predicted"]
        self.ids.extend(part["tokens"])
        # Bytes that are no character come as U+FFFD.
        text = part["content"].replace(REPLACEMENT, "")
        if not text and self._marker and part["tokens"]:
            text = self._marker(part["tokens"][0])
        self.text += text
        yield TextDelta(self._stops.feed(text), self.tokens - before, self._details(part, text))

    def _details(self, part: dict[str, Any], text: str) -> tuple[Token, ...]:
        """Tokens without text wait for the next that has some: the mark that ends a reply is not part of it."""
        if self._alternatives is None:
            return ()
        self._held_details += [self._token(entry) for entry in part.get("completion_probabilities", ())]
        if not text:
            return ()
        details, self._held_details = tuple(self._held_details), []
        return details

    def _token(self, entry: dict[str, Any]) -> Token:
        others = entry["top_logprobs"][: self._alternatives]
        return Token(
            entry["id"],
            _text_of(entry),
            entry["logprob"],
            tuple(TokenAlternative(other["id"], _text_of(other), other["logprob"]) for other in others),
        )


def likeliest(answer: dict[str, Any], count: int) -> tuple[TokenAlternative, ...]:
    """What could have stood in the place of the first token of a completion that was not streamed; nothing where it is not told."""
    told = answer.get("completion_probabilities") or [{}]
    if "top_probs" in told[0]:  # after sampling
        possible = [other for other in told[0]["top_probs"] if other["prob"] > 0]
        return tuple(TokenAlternative(other["id"], _text_of(other), log(other["prob"])) for other in possible[:count])
    return tuple(
        TokenAlternative(other["id"], _text_of(other), other["logprob"]) for other in told[0].get("top_logprobs", [])[:count]
    )


def _text_of(entry: dict[str, Any]) -> str:
    return bytes(entry["bytes"]).decode("utf-8", errors="replace")
