"""How many prompt tokens fit between two steps of the running replies, learned from how long the steps take."""

from __future__ import annotations

LEAST = 16
"""Fewer prompt tokens are not computed at once: the weights are read for each pass, however few they are."""
ALONE_SECONDS = 0.1
"""The length of a step when no reply is running: what a newcomer may have to wait."""
SHARE = 0.7
"""Seconds that prompts may take for each second that running replies take."""
WEIGHT = 0.3


class PrefillBudget:
    """Token bucket: decode time grants prefill time. A chunk that cost more than was granted is followed by steps without one.

    Seconds are weighted means. most: the largest chunk; first: that of a step when nothing is known yet.
    """

    def __init__(self, most: int, first: int) -> None:
        self._most = most
        self._first = min(first, most)
        self._step: float | None = None
        self._per_token: dict[bool, float] = {}
        self._earned = 0.0

    def tokens(self, decoding: bool) -> int:
        """How many prompt tokens to compute now, 0 for none; decoding: whether replies are running beside."""
        cost = self._per_token.get(decoding)
        if cost is None:
            return max(LEAST, self._first // 4) if decoding else self._first
        if not decoding:
            return int(min(max(ALONE_SECONDS / cost, LEAST), self._most))
        return min(int(self._earned / cost), self._most) if self._earned >= LEAST * cost else 0

    def note(self, seconds: float, prompt_tokens: int, decoding: bool) -> None:
        """A step took `seconds`."""
        if not prompt_tokens:
            self._step = _mean(self._step, seconds)
            self._earn(seconds, 0.0)
            return
        if decoding and self._step is None:
            return
        extra = max(seconds - (self._step or 0.0), seconds / 20) if decoding else seconds
        self._per_token[decoding] = _mean(self._per_token.get(decoding), extra / prompt_tokens)
        if decoding:
            self._earn(self._step or 0.0, extra)

    def _earn(self, decoded: float, spent: float) -> None:
        """Seconds of replies and of prompts. No more is kept than one chunk costs: a prompt must not find the savings of an hour."""
        most = max(SHARE * (self._step or 0.0), LEAST * self._per_token.get(True, 0.0))
        self._earned = min(self._earned + SHARE * decoded - spent, most)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new
