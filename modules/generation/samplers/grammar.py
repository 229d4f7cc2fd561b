"""Replies of a given form: the tokens that a grammar allows next, by llguidance."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from modules.errors import UserError
from modules.generation.samplers.candidates import NEG_INF
from modules.generation.samplers.vocabulary import Vocabulary

STEP_SECONDS = 0.03
EXCESS_SECONDS = 0.3
"""How long one step may compute, and by how much all steps of a reply together may exceed that: other replies wait for it."""


class Constraint:
    """One reply's way through a grammar."""

    def __init__(self, lark: str, vocabulary: Vocabulary) -> None:
        from llguidance import LLMatcher, LLParserLimits

        try:
            guide = vocabulary.guide
        except ValueError as error:
            raise UserError(f"This model's tokenizer cannot be used with grammars: {error}", param="grammar") from None
        self.words = (guide.vocab_size + 31) // 32
        limits = LLParserLimits(verbose_errors=False)
        self._matcher = LLMatcher(guide, LLMatcher.grammar_from_lark(lark), log_level=0, limits=limits)
        if self._matcher.is_error():
            raise UserError(f"The grammar cannot be used: {_first_line(self._matcher.get_error())}", param="grammar")

        self._excess = 0.0

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Raises UserError where the steps of this reply have taken too long: a grammar with many readings slows all down."""
        began = time.thread_time()
        yield
        self._excess += max(0.0, time.thread_time() - began - STEP_SECONDS)
        if self._excess > EXCESS_SECONDS:
            raise UserError("This form takes too long to follow: too many of its rules fit the same text.", param="grammar")

    @property
    def finished(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._matcher.is_stopped()

    def accept(self, token: int) -> None:
        """Go on by one token. Raises UserError where the grammar does not allow it."""
        with self._measured():
            consumed = self._matcher.consume_token(token)
        if not consumed:
            raise self._broken()

    def mark(self, bits: np.ndarray) -> None:
        """Set a bit for each token that may follow. bits [words] int32, contiguous. Raises UserError where the grammar has failed.

        A grammar can fail in the middle of a reply, at a limit of llguidance's; what it allows then is nothing but the end.
        """
        with self._measured():
            self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._matcher.is_error():
            raise self._broken()

    def _broken(self) -> UserError:
        """What is said once the matcher has failed: by a token against the grammar, or at a limit."""
        why = _first_line(self._matcher.get_error())
        if "doesn't satisfy the grammar" in why:
            return UserError("The grammar allows none of the tokens that the other settings leave.", param="grammar")
        return UserError(f"The reply cannot go on in the form it was asked for: {why}", param="grammar")


def _first_line(message: str) -> str:
    return message.strip().split("\n", 1)[0][:300]


def allowed(constraints: Sequence[Constraint]) -> np.ndarray:
    """The tokens that may follow in each row, as bits: [rows, words] int32."""
    bits = np.zeros((len(constraints), constraints[0].words), np.int32)
    for constraint, row in zip(constraints, bits, strict=True):
        constraint.mark(row)
    return bits


def keep_allowed(logits: Tensor, bits: Tensor) -> Tensor:
    """Mask the tokens whose bit is not set. logits [rows, vocabulary]; bits [rows, words] int32, 32 tokens each, lowest first."""
    each = torch.arange(32, dtype=torch.int32, device=bits.device)
    wanted = ((bits[:, :, None] >> each) & 1).bool().flatten(1)
    width, known = logits.shape[-1], wanted.shape[-1]
    if known < width:
        wanted = torch.nn.functional.pad(wanted, (0, width - known), value=False)
    return logits.masked_fill(~wanted[:, :width], NEG_INF)
