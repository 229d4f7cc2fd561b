"""Texts that must not appear: which tokens would complete one, given what has been said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modules.generation.samplers.vocabulary import Vocabulary


class BannedStrings:
    """Watches one reply. A text is caught however it is cut into tokens; what is in the prompt does not matter."""

    def __init__(self, texts: Sequence[str], vocabulary: Vocabulary) -> None:
        self._texts = [text.encode() for text in texts]
        self._vocabulary = vocabulary
        self._reach = max(len(text) for text in self._texts) - 1
        self._said = b""
        self._always = [vocabulary.containing(text) for text in self._texts]

    def add(self, token: int) -> None:
        self._said = (self._said + self._vocabulary.bytes_of(token))[-self._reach :] if self._reach else b""

    def next(self) -> np.ndarray:
        """Ids (int64, some may come twice) of the tokens that must not come next."""
        completing = [
            self._vocabulary.starting_with(text[size:])
            for text in self._texts
            for size in range(1, min(len(text) - 1, len(self._said)) + 1)
            if self._said.endswith(text[:size])
        ]
        return np.concatenate([*self._always, *completing])
