"""Contrastive search: of the likeliest tokens, one that brings something else than the text so far."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

MAX_CANDIDATES = 16
"""So many tokens are tried at each step at most, whatever top_k is: each costs a pass through the model."""


class ContrastiveSearchState:
    """The hidden states of one text, which the candidates for its next token are compared with (Su et al. 2022, arXiv:2202.06417).

    candidate: the one whose hidden state is wanted next; None while the next token's logits are.
    """

    def __init__(self, alpha: float) -> None:
        """alpha: 0 takes the likeliest token, 1 the one least like the text."""
        self.candidate: int | None = None
        self._alpha = alpha
        self._states: Tensor | None = None
        self._length = 0
        self._candidates: list[int] = []
        self._tried: list[Tensor] = []
        self._probabilities: Tensor | None = None
        self._logits: Tensor | None = None

    def add(self, states: Tensor) -> None:
        """Note the last layer's hidden states [tokens, hidden] of the next tokens of the text."""
        end = self._length + len(states)
        if self._states is None or end > len(self._states):
            room = states.new_empty(end * 5 // 4 + 64, states.shape[-1])
            if self._states is not None:
                room[: self._length] = self._states[: self._length]
            self._states = room
        self._states[self._length : end] = normalize(states, dim=-1)
        self._length = end

    def propose(self, candidates: list[int], probabilities: Tensor, logits: Tensor) -> None:
        """Begin a choice: probabilities [k] of the `candidates` by the model; logits [1, vocabulary] that they are of."""
        self._candidates, self._probabilities, self._logits, self._tried = candidates, probabilities, logits, []
        self.candidate = candidates[0]

    def add_candidate(self, state: Tensor) -> tuple[int, Tensor] | None:
        """Note the hidden state [1, hidden] of `candidate`. After the last of them: the token to choose, and its logits."""
        self._tried.append(state)
        if len(self._tried) < len(self._candidates):
            self.candidate = self._candidates[len(self._tried)]
            return None
        assert self._probabilities is not None and self._logits is not None
        token, logits = self._candidates[self._best(self._probabilities, torch.cat(self._tried))], self._logits
        self.candidate = self._logits = None
        return token, logits

    def _best(self, probabilities: Tensor, states: Tensor) -> int:
        """Which of the candidates comes next: probabilities [k] by the model, states [k, hidden] after each of them."""
        assert self._states is not None
        likeness = (normalize(states, dim=-1) @ self._states[: self._length].T).amax(-1)
        return int(((1 - self._alpha) * probabilities - self._alpha * likeness.float()).argmax())
