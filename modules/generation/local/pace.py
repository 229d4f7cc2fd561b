"""How many prompt tokens fit between two steps of the running replies, learned from how long the steps take."""

from __future__ import annotations

LEAST = 16
ALONE_SECONDS = 0.1
"""The length of a step when no reply is running: what a newcomer may have to wait."""
SHARE = 0.7
"""How much longer a step of running replies may get when a prompt is read beside it."""
WEIGHT = 0.3


class Pace:
    """Weighted means of seconds; `most` is the largest chunk."""

    def __init__(self, most: int, first: int) -> None:
        self._most = most
        self._first = min(first, most)
        self._step: float | None = None
        self._per_token: dict[bool, float] = {}

    def budget(self, decoding: bool) -> int:
        """How many prompt tokens to compute now; decoding: whether replies are running beside."""
        cost = self._per_token.get(decoding)
        if cost is None:
            return max(LEAST, self._first // 4) if decoding else self._first
        seconds = SHARE * self._step if decoding and self._step else ALONE_SECONDS
        return int(min(max(seconds / cost, LEAST), self._most))

    def note(self, seconds: float, prompt_tokens: int, decoding: bool) -> None:
        """A step took `seconds`."""
        if not prompt_tokens:
            self._step = _mean(self._step, seconds)
            return
        if decoding and self._step is None:
            return
        extra = max(seconds - (self._step or 0.0), seconds / 20) if decoding else seconds
        self._per_token[decoding] = _mean(self._per_token.get(decoding), extra / prompt_tokens)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new
