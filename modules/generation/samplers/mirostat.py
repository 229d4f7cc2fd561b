"""Mirostat 2: a filter that keeps the surprisal of the text near a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modules.generation.samplers.candidates import NEG_INF


def mirostat_filter(logits: Tensor, mu: Tensor, total: Tensor | None = None) -> Tensor:
    """Mask tokens of more surprisal than `mu` bits (Basu et al. 2021, arXiv:2007.14966, algorithm 2).

    logits [rows, width] float32, best first; mu [rows, 1] of the paper. The best token always stays.
    total [rows, 1]: the logsumexp of all logits, where `logits` are only the best. Returns the same shape, masked with -inf.
    """
    out = surprisal(logits, total) > mu
    out[:, :1] = False
    return logits.masked_fill(out, NEG_INF)


def mirostat_floor(logits: Tensor, mu: Tensor, total: Tensor) -> Tensor:
    """A logit below which `mirostat_filter` keeps nothing: [rows, 1]. Shapes as there."""
    return torch.minimum(total - mu * math.log(2) - 1e-3, logits.amax(-1, keepdim=True))


def surprisal(logits: Tensor, total: Tensor | None = None) -> Tensor:
    """-log2 of each token's probability. Shapes as in `mirostat_filter`."""
    return ((logits.logsumexp(-1, keepdim=True) if total is None else total) - logits) / math.log(2)


def corrected(mu: Tensor, observed: Tensor, tau: Tensor, eta: Tensor) -> Tensor:
    """The next μ after a token of `observed` bits: μ - eta · (observed - tau). All of one shape."""
    return mu - eta * (observed - tau)
