"""llama.cpp's answers as events: whole characters, no part of a stop text, counts, log-probabilities, times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import log
from typing import Any

from modules.generation.llamacpp.parts import Joined
from modules.generation.sampling import SamplingParams
from modules.generation.stop_strings import REPLACEMENT, StopTexts
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

    marker: the text of a token that llama.cpp leaves out (an end-of-turn mark), put into the reply where markers are wanted.
    apart: makes single tokens of those that llama.cpp joined because they are parts of a character.
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
        apart: Callable[[Sequence[Token | Joined]], Sequence[Token]],
        asked: float,
    ) -> None:
        self._marker = marker
        self._skips_markers = sampling.skip_special_tokens
        self._apart = apart
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
        self._held_details: list[Token | Joined] = []
        self._details_wait = False
        self._settled = 0
        self._told: list[Token] = []
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
        rest = self._stops.finish()
        details = self._told_apart() if self._details_wait else ()
        if rest or details:
            yield TextDelta(rest, 0, details)
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
        if not text and not self._skips_markers and part["tokens"]:
            text = self._marker(part["tokens"][0])
        self.text += text
        made = self.tokens - before
        yield TextDelta(self._stops.feed(text), made, self._details(part, text, made))

    def _details(self, part: dict[str, Any], text: str, made: int) -> tuple[Token, ...]:
        """Tokens without text wait for the next that has some: the mark that ends a reply is not part of it.

        From the first joined ones on all wait for the end, when the model is free to be asked about them.
        """
        if self._alternatives is None:
            return ()
        entries = part.get("completion_probabilities", ())
        for entry in entries:
            token = self._token(entry)
            joined = made > len(entries)
            self._details_wait = self._details_wait or joined
            self._held_details.append(Joined(token, made - len(entries) + 1, bytes(entry["bytes"])) if joined else token)
        if text:
            self._settled = len(self._held_details)
        if not text or self._details_wait:
            return ()
        details, self._held_details = tuple(token for token in self._held_details if isinstance(token, Token)), []
        self._told += details
        return details

    def _told_apart(self) -> tuple[Token, ...]:
        return tuple(self._apart([*self._told, *self._held_details[: self._settled]])[len(self._told) :])

    def _token(self, entry: dict[str, Any]) -> Token:
        others = entry["top_logprobs"][: self._alternatives]
        own = self._alternative(entry)
        return Token(own.id, own.text, own.logprob, tuple(self._alternative(other) for other in others), own.raw)

    def _alternative(self, entry: dict[str, Any]) -> TokenAlternative:
        found = _possible(entry, entry["logprob"], self._marker)
        return replace(found, raw=None) if found.raw == b"" and not self._skips_markers else found


def likeliest(answer: dict[str, Any], count: int, marker: Callable[[int], str]) -> tuple[TokenAlternative, ...]:
    """What could have stood in the place of the first token of a completion that was not streamed; nothing where it is not told."""
    told = answer.get("completion_probabilities") or [{}]
    if "top_probs" in told[0]:  # after sampling
        possible = [other for other in told[0]["top_probs"] if other["prob"] > 0]
        return tuple(_possible(other, log(other["prob"]), marker) for other in possible[:count])
    return tuple(_possible(other, other["logprob"], marker) for other in told[0].get("top_logprobs", [])[:count])


def _possible(entry: dict[str, Any], logprob: float, marker: Callable[[int], str]) -> TokenAlternative:
    """raw: none for markers, which add nothing to a text, and the bytes of parts of characters."""
    raw = bytes(entry["bytes"])
    if not raw:
        return TokenAlternative(entry["id"], marker(entry["id"]), logprob, b"")
    text = raw.decode("utf-8", errors="replace")
    return TokenAlternative(entry["id"], text, logprob, raw if text.encode() != raw else None)
