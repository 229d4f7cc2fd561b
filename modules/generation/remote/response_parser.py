"""An engine's chunks as events: text up to a stop text, counts, log-probabilities, times."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from modules.errors import Unavailable
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

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "stop", "function_call": "stop"}
"""Whatever else an engine says (abort, content_filter, error) cut the reply."""
UNKNOWN = -1
"""The id of a token where the protocol only gives its text."""


class ChunkReader:
    """Reads one reply of either endpoint. `prompt_tokens` is what was counted before, 0 where nobody could.

    opened: what `Started` says of the prompt's end.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        prompt_tokens: int,
        dropped: int,
        alternatives: int | None,
        asked: float,
        opened: str | None = None,
    ):
        self._opened = opened
        self._stops = StopTexts(sampling.stop)
        self._alternatives = alternatives
        self._prompt_tokens = prompt_tokens
        self._dropped = dropped
        self._asked = asked
        self._admitted = time.perf_counter()
        self._first = self._last = 0.0
        self._cached = 0
        self._tokens = 0
        self._counted: int | None = None
        self._started = False
        self._thinking = False
        self._reason: FinishReason | None = None
        self._stop_text: str | None = None

    @property
    def stopped(self) -> bool:
        return self._stops.found is not None

    def read(self, chunks: Iterable[Any]) -> Iterator[GenerationEvent]:
        """The events up to a stop text or the last chunk."""
        for chunk in chunks:
            extra = chunk.model_extra or {}
            if progress := extra.get("prompt_progress"):
                yield from self._prefill(progress)
            if chunk.usage:
                self._count(chunk.usage)
            for choice in chunk.choices[:1]:
                yield from self._choice(choice)
                if self.stopped:
                    return

    def finish(self) -> Iterator[GenerationEvent]:
        """What was held back, and the end. Raises Unavailable where the engine gave no reason to end."""
        if self._reason is None and not self.stopped:
            raise Unavailable("The engine's answer broke off.")
        yield from self._start()
        if rest := self._stops.finish():
            yield TextDelta(rest, 0)
        now = time.perf_counter()
        times = Timings(self._admitted - self._asked, (self._first or now) - self._asked, self._last - self._first)
        made = self._tokens if self._counted is None else self._counted
        usage = Usage(self._prompt_tokens, made, self._cached)
        yield Finished(
            "stop" if self.stopped or self._reason is None else self._reason, usage, times, self._stops.found or self._stop_text
        )

    def _prefill(self, progress: dict[str, int]) -> Iterator[GenerationEvent]:
        self._prompt_tokens, self._cached = progress["total"], progress["cache"]
        if not self._started:
            yield Prefill(progress["processed"], progress["total"])

    def _count(self, usage: Any) -> None:
        self._prompt_tokens, self._counted = usage.prompt_tokens, usage.completion_tokens
        if details := usage.prompt_tokens_details:
            self._cached = details.cached_tokens or 0

    def _start(self) -> Iterator[GenerationEvent]:
        if not self._started:
            self._started = True
            yield Started(self._prompt_tokens, self._cached, self._dropped, opened=self._opened)

    def _choice(self, choice: Any) -> Iterator[GenerationEvent]:
        text = self._text(choice).replace(REPLACEMENT, "")
        details = self._details(choice.logprobs) if choice.logprobs and self._alternatives is not None else ()
        if text or details:
            self._last = time.perf_counter()
            self._first = self._first or self._last
            yield from self._start()
            made = max(len(details), 1)
            self._tokens += made
            yield TextDelta(self._stops.feed(text), made, details)
        if choice.finish_reason:
            self._reason = _REASONS.get(choice.finish_reason, "abort")
            stop = (choice.model_extra or {}).get("stop_reason")
            self._stop_text = stop if isinstance(stop, str) else None

    def _text(self, choice: Any) -> str:
        """What some engines send apart as reasoning is put back where the model wrote it."""
        delta = getattr(choice, "delta", None)
        if delta is None:
            return choice.text or ""
        extra = delta.model_extra or {}
        thought = extra.get("reasoning_content") or extra.get("reasoning") or ""
        text = delta.content or ""
        if thought and not self._thinking:
            self._thinking = True
            thought = f"<think>\n{thought}"
        if text and self._thinking and not thought:
            self._thinking = False
            text = f"\n</think>\n\n{text}"
        return thought + text

    def _details(self, logprobs: Any) -> tuple[Token, ...]:
        """Chat completions list objects; completions have parallel lists, except llama-server's."""
        content = getattr(logprobs, "content", None) or (logprobs.model_extra or {}).get("content")
        if content is not None:
            return tuple(self._token(_as_dict(entry)) for entry in content)
        texts, likelihoods = logprobs.tokens or [], logprobs.token_logprobs or []
        tops = logprobs.top_logprobs or [None] * len(texts)
        return tuple(
            self._named(text, logprob, self._most(tuple(_possible(*pair) for pair in (top or {}).items())))
            for text, logprob, top in zip(texts, likelihoods, tops, strict=False)
        )

    def _token(self, entry: dict[str, Any]) -> Token:
        others = tuple(_told(_as_dict(other)) for other in entry.get("top_logprobs") or ())
        own = _told(entry)
        return Token(own.id, own.text, own.logprob, self._most(others), own.raw)

    def _named(self, text: str, logprob: float, others: tuple[TokenAlternative, ...]) -> Token:
        own = _possible(text, logprob)
        return Token(own.id, own.text, logprob, others, own.raw)

    def _most(self, others: tuple[TokenAlternative, ...]) -> tuple[TokenAlternative, ...]:
        return others[: self._alternatives]


def _told(entry: dict[str, Any]) -> TokenAlternative:
    """An entry of chat: with its bytes, as far as the engine tells them."""
    raw = bytes(entry["bytes"]) if entry.get("bytes") else None
    text = entry["token"] if raw is None else raw.decode("utf-8", errors="replace")
    part = raw is not None and text.encode() != raw
    return TokenAlternative(entry.get("id", UNKNOWN), text if part else entry["token"], entry["logprob"], raw if part else None)


def _possible(text: str, logprob: float) -> TokenAlternative:
    """A key of completions: a token's text, or `bytes:\\xe4`."""
    if not re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", text):
        return TokenAlternative(UNKNOWN, text, logprob)
    raw = bytes.fromhex(text.removeprefix("bytes:").replace("\\x", ""))
    return TokenAlternative(UNKNOWN, raw.decode("utf-8", errors="replace"), logprob, raw)


def _as_dict(entry: Any) -> dict[str, Any]:
    return entry if isinstance(entry, dict) else entry.model_dump()
