"""Filters that keep the likeliest tokens, by rank, by probability or by score."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modules.generation.samplers.candidates import NEVER


def keep_top_k(scores: Tensor, top_k: Tensor) -> Tensor:
    """Mask all but the `top_k` best (Fan et al. 2018, arXiv:1805.04833).

    scores [rows, width] float32, best first; top_k [rows, 1], 0 keeps all. Returns the same shape, masked with -inf.
    """
    rank = torch.arange(scores.shape[-1], device=scores.device)
    return scores.masked_fill((rank >= top_k) & (top_k > 0), NEVER)


def keep_top_p(scores: Tensor, top_p: Tensor, total: Tensor | None = None) -> Tensor:
    """Mask what comes after the likeliest tokens that together reach `top_p` (Holtzman et al. 2020, arXiv:1904.09751).

    scores [rows, width] float32, best first; top_p [rows, 1] in 0..1, 1 keeps all. The best token always stays.
    total [rows, 1]: the logsumexp of all scores, where `scores` are only the best. Returns the same shape, masked with -inf.
    """
    probability = (scores - (scores.logsumexp(-1, keepdim=True) if total is None else total)).exp()
    before = probability.cumsum(-1) - probability
    out = (before >= top_p) & (top_p < 1)
    out[:, :1] = False
    return scores.masked_fill(out, NEVER)


def lowest_of_top_p(total: Tensor, top_p: Tensor, width: int) -> Tensor:
    """A score below which `keep_top_p` keeps nothing of `width` tokens: [rows, 1]; total and top_p as there.

    Tokens below (1 - top_p) / width have less than 1 - top_p together, so the others reach top_p before them.
    """
    return total + ((1 - top_p).clamp(max=0.5) / width).log()


def keep_min_p(scores: Tensor, min_p: Tensor) -> Tensor:
    """Mask tokens below `min_p` × the likeliest probability (Nguyen et al. 2024, arXiv:2407.01082).

    scores [rows, width] float32; min_p [rows, 1] in 0..1, 0 keeps all. Returns the same shape, masked with -inf.
    """
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + min_p.log(), NEVER)


def keep_top_a(scores: Tensor, top_a: Tensor) -> Tensor:
    """Mask tokens below `top_a` × the square of the likeliest probability (BlinkDL 2022, RWKV-LM).

    scores [rows, width] float32; top_a [rows, 1] in 0..1, 0 keeps all. Returns the same shape, masked with -inf.
    """
    best = scores.amax(-1, keepdim=True)
    likeliest = best - scores.logsumexp(-1, keepdim=True)
    return scores.masked_fill(scores < (best + likeliest + top_a.log()).clamp(max=best), NEVER)


def keep_top_n_sigma(scores: Tensor, sigmas: Tensor) -> Tensor:
    """Mask tokens more than `sigmas` standard deviations below the best (Tang et al. 2024, arXiv:2411.07641).

    scores [rows, width] float32, where -inf does not count; sigmas [rows, 1], 0 keeps all.
    Returns the same shape, masked with -inf.
    """
    best = scores.amax(-1, keepdim=True)
    count = (scores > NEVER).sum(-1, keepdim=True)
    # Distances from the best are small numbers: the mean of their squares, less the square of their mean, is exact enough.
    away = (scores - best).nan_to_num_(neginf=0.0)
    mean = away.sum(-1, keepdim=True) / count
    spread = (torch.linalg.vector_norm(away, dim=-1, keepdim=True).square() / count - mean.square()).clamp(min=0).sqrt()
    reach = torch.where(sigmas > 0, sigmas * spread, math.inf)
    return scores.masked_fill(scores < best - reach, NEVER)
