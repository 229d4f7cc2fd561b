"""Mirostat 2: a filter that learns how surprising the text is, and keeps it near a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modules.generation.samplers.candidates import NEVER


def keep_unsurprising(scores: Tensor, most: Tensor) -> Tensor:
    """Mask tokens of more surprise than `most` bits (Basu et al. 2021, arXiv:2007.14966, algorithm 2).

    scores [rows, width] float32, best first; most [rows, 1], the paper's μ. The best token always stays.
    Returns the same shape, masked with -inf.
    """
    out = surprise(scores) > most
    out[:, :1] = False
    return scores.masked_fill(out, NEVER)


def surprise(scores: Tensor) -> Tensor:
    """-log2 of each token's probability. scores [rows, width] float32."""
    return -torch.log_softmax(scores, -1) / math.log(2)


def corrected(most: Tensor, observed: Tensor, tau: Tensor, eta: Tensor) -> Tensor:
    """The next μ after a token of `observed` bits: μ - eta · (observed - tau). All of one shape."""
    return most - eta * (observed - tau)
