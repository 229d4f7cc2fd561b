"""What the samplers know of a model's tokens: how many, which end a reply, and the bytes each one stands for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Vocabulary:
    """Made once per loaded model, from its tokenizer. What costs time is computed when it is first asked for."""

    def __init__(self, tokenizer: Any, *, size: int | None = None, eos: Iterable[int] = ()) -> None:
        """tokenizer: a transformers tokenizer. size: the width of the logits, where it is not the tokenizer's length.

        eos: ids that end a reply; the tokenizer's own is always among them.
        """
        self._tokenizer = tokenizer
        self.size = size or len(tokenizer)
        own = tokenizer.eos_token_id
        self.eos = tuple(sorted({*eos, *([] if own is None else [own])}))

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 of one token, which may be part of a character; empty for markers such as end-of-turn."""
        return self.bytes[token] if token < len(self.bytes) else b""

    @cached_property
    def bytes(self) -> list[bytes]:
        """The bytes of every token, by id; empty for markers."""
        guide = self.guide
        return [b"" if guide.is_special_token(token) else guide.decode_bytes([token]) for token in range(guide.vocab_size)]

    @cached_property
    def lengths(self) -> np.ndarray:
        """How many bytes each token has, int64 [size]."""
        return np.array([len(piece) for piece in self.bytes], dtype=np.int64)

    @cached_property
    def guide(self) -> LLTokenizer:
        """llguidance's view of the tokenizer. Takes about a second. Raises ValueError for tokenizers it cannot read."""
        from llguidance.hf import from_tokenizer

        eos = list(self.eos)
        return from_tokenizer(self._tokenizer, n_vocab=max(self.size, len(self._tokenizer)), eos_token=eos or None)
