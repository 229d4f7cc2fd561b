"""Contrastive search: of the likeliest tokens, one that brings something else than the text so far."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

MOST_CANDIDATES = 16
"""So many tokens are tried at each step at most, whatever top_k is: each costs a pass through the model."""


class Contrast:
    """The model's states of one text, which candidates for its next token are compared with (Su et al. 2022, arXiv:2202.06417)."""

    def __init__(self, alpha: float) -> None:
        """alpha: 0 takes the likeliest token, 1 the one least like the text."""
        self._alpha = alpha
        self._states: Tensor | None = None
        self._length = 0

    def add(self, states: Tensor) -> None:
        """Note the last layer's states [tokens, hidden] of the next tokens of the text."""
        end = self._length + len(states)
        if self._states is None or end > len(self._states):
            room = states.new_empty(end * 5 // 4 + 64, states.shape[-1])
            if self._states is not None:
                room[: self._length] = self._states[: self._length]
            self._states = room
        self._states[self._length : end] = normalize(states, dim=-1)
        self._length = end

    def best(self, probabilities: Tensor, states: Tensor) -> int:
        """Which of the candidates comes next: probabilities [k] by the model, states [k, hidden] after each of them."""
        assert self._states is not None
        likeness = (normalize(states, dim=-1) @ self._states[: self._length].T).amax(-1)
        return int(((1 - self._alpha) * probabilities - self._alpha * likeness.float()).argmax())
