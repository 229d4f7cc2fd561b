"""Mirostat 2: a filter that learns how surprising the text is, and keeps it near a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modules.generation.samplers.candidates import NEVER


def keep_unsurprising(scores: Tensor, most: Tensor, total: Tensor | None = None) -> Tensor:
    """Mask tokens of more surprise than `most` bits (Basu et al. 2021, arXiv:2007.14966, algorithm 2).

    scores [rows, width] float32, best first; most [rows, 1], the paper's μ. The best token always stays.
    total [rows, 1]: the logsumexp of all scores, where `scores` are only the best. Returns the same shape, masked with -inf.
    """
    out = surprise(scores, total) > most
    out[:, :1] = False
    return scores.masked_fill(out, NEVER)


def lowest_unsurprising(scores: Tensor, most: Tensor, total: Tensor) -> Tensor:
    """A score below which `keep_unsurprising` keeps nothing: [rows, 1]. Shapes as there."""
    return torch.minimum(total - most * math.log(2) - 1e-3, scores.amax(-1, keepdim=True))


def surprise(scores: Tensor, total: Tensor | None = None) -> Tensor:
    """-log2 of each token's probability. Shapes as in `keep_unsurprising`."""
    return ((scores.logsumexp(-1, keepdim=True) if total is None else total) - scores) / math.log(2)


def corrected(most: Tensor, observed: Tensor, tau: Tensor, eta: Tensor) -> Tensor:
    """The next μ after a token of `observed` bits: μ - eta · (observed - tau). All of one shape."""
    return most - eta * (observed - tau)
