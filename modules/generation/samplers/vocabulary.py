"""What the samplers know of a model's tokens: how many, which end a reply, and the bytes each one stands for."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Vocabulary:
    """Made once per loaded model, from its tokenizer. What costs time is computed when it is first asked for."""

    def __init__(self, tokenizer: Any, *, size: int | None = None, eos: Iterable[int] = ()) -> None:
        """tokenizer: a fast transformers tokenizer. size: the width of the logits, where it is not the tokenizer's length.

        eos: ids that end a reply; the tokenizer's own is always among them.
        """
        self._tokenizer = tokenizer
        self.size = size or len(tokenizer)
        own = tokenizer.eos_token_id
        self.eos: tuple[int, ...] = tuple(sorted({*eos, *([] if own is None else [own])}))

    @cached_property
    def guide(self) -> LLTokenizer:
        """llguidance's view of the tokenizer. Takes about a second. Raises ValueError for tokenizers it cannot read."""
        from llguidance.hf import from_tokenizer

        width = max(self.size, len(self._tokenizer))
        return from_tokenizer(self._tokenizer, n_vocab=width, eos_token=list(self.eos) or None)

    @cached_property
    def bytes(self) -> list[bytes]:
        """The bytes of every token, by id; empty for markers."""
        guide = self.guide
        return [b"" if guide.is_special_token(token) else guide.decode_bytes([token]) for token in range(guide.vocab_size)]

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 of one token, which may be part of a character; empty for markers such as end-of-turn."""
        return self.bytes[token] if token < len(self.bytes) else b""

    @cached_property
    def ends(self) -> np.ndarray:
        """Ids of the tokens that end a reply or a line, int64."""
        line = self._tokenizer.encode("\n", add_special_tokens=False)
        return np.array([*self.eos, *line[-1:]], dtype=np.int64)

    def containing(self, text: bytes) -> np.ndarray:
        """Ids of the tokens that have all of `text` in them, int64."""
        return np.array([token for token, piece in enumerate(self.bytes) if text in piece], dtype=np.int64)

    def starting_with(self, text: bytes) -> np.ndarray:
        """Ids of the tokens that start with `text`, int64."""
        pieces, ids = self._alphabet
        size = len(text)
        return ids[bisect_left(pieces, text) : bisect_right(pieces, text, key=lambda piece: piece[:size])]

    @cached_property
    def _alphabet(self) -> tuple[list[bytes], np.ndarray]:
        ids = sorted(range(len(self.bytes)), key=self.bytes.__getitem__)
        return [self.bytes[token] for token in ids], np.array(ids, dtype=np.int64)
