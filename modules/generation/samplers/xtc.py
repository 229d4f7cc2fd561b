"""Exclude top choices: now and then, all but the least of the likely tokens are left out."""

from __future__ import annotations

import torch
from torch import Tensor

from modules.generation.samplers.candidates import NEG_INF


def exclude_top_choices(logits: Tensor, threshold: Tensor, excluding: Tensor, protected: Tensor) -> Tensor:
    """Mask every token of at least `threshold` probability but the least likely of them (Weidmann 2024, "XTC").

    logits [rows, width] float32, best first; threshold [rows, 1]; excluding [rows, 1] bool: whether XTC triggers for this row.
    protected [rows, width] bool: tokens that must not be lost (ends of replies and lines); a row that would lose one stays as it is.
    Returns the same shape, masked with -inf.
    """
    likely = torch.softmax(logits, -1) >= threshold
    out = likely & torch.nn.functional.pad(likely[:, 1:], (0, 1), value=False) & excluding
    spared = (out & protected).any(-1, keepdim=True)
    return logits.masked_fill(out & ~spared, NEG_INF)
