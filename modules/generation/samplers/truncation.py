"""Truncation samplers: filters that keep the likeliest tokens, by rank, probability, logit, or the shape of the distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modules.generation.samplers.candidates import NEG_INF, Candidates


def keep_top_k(logits: Tensor, top_k: Tensor) -> Tensor:
    """Mask all but the `top_k` best (Fan et al. 2018, arXiv:1805.04833).

    logits [rows, width] float32, best first; top_k [rows, 1], 0 keeps all. Returns the same shape, masked with -inf.
    """
    rank = torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill((rank >= top_k) & (top_k > 0), NEG_INF)


def keep_top_p(logits: Tensor, top_p: Tensor, total: Tensor | None = None) -> Tensor:
    """Mask what comes after the likeliest tokens that together reach `top_p` (Holtzman et al. 2020, arXiv:1904.09751).

    logits [rows, width] float32, best first; top_p [rows, 1] in 0..1, 1 keeps all. The best token always stays.
    total [rows, 1]: the logsumexp of all logits, where `logits` are only the best. Returns the same shape, masked with -inf.
    """
    probability = (logits - (logits.logsumexp(-1, keepdim=True) if total is None else total)).exp()
    before = probability.cumsum(-1) - probability
    out = (before >= top_p) & (top_p < 1)
    out[:, :1] = False
    return logits.masked_fill(out, NEG_INF)


def lowest_of_top_p(total: Tensor, top_p: Tensor, width: int) -> Tensor:
    """A logit below which `keep_top_p` keeps nothing of `width` tokens: [rows, 1]; total and top_p as there.

    Tokens below (1 - top_p) / width have less than 1 - top_p together, so the others reach top_p before them.
    """
    return total + ((1 - top_p).clamp(max=0.5) / width).log()


def keep_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Mask tokens below `min_p` × the likeliest probability (Nguyen et al. 2024, arXiv:2407.01082).

    logits [rows, width] float32; min_p [rows, 1] in 0..1, 0 keeps all. Returns the same shape, masked with -inf.
    """
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + min_p.log(), NEG_INF)


def keep_top_a(logits: Tensor, top_a: Tensor) -> Tensor:
    """Mask tokens below `top_a` × the square of the likeliest probability (BlinkDL 2022, RWKV-LM).

    logits [rows, width] float32; top_a [rows, 1] in 0..1, 0 keeps all. Returns the same shape, masked with -inf.
    """
    best = logits.amax(-1, keepdim=True)
    likeliest = best - logits.logsumexp(-1, keepdim=True)
    return logits.masked_fill(logits < (best + likeliest + top_a.log()).clamp(max=best), NEG_INF)


def keep_top_n_sigma(logits: Tensor, sigmas: Tensor) -> Tensor:
    """Mask tokens more than `sigmas` standard deviations below the best (Tang et al. 2024, arXiv:2411.07641).

    logits [rows, width] float32, where -inf does not count; sigmas [rows, 1], 0 keeps all.
    Returns the same shape, masked with -inf.
    """
    best = logits.amax(-1, keepdim=True)
    count = (logits > NEG_INF).sum(-1, keepdim=True)
    # Distances from the best are small numbers: the mean of their squares, less the square of their mean, is exact enough.
    away = (logits - best).nan_to_num_(neginf=0.0)
    mean = away.sum(-1, keepdim=True) / count
    spread = (torch.linalg.vector_norm(away, dim=-1, keepdim=True).square() / count - mean.square()).clamp(min=0).sqrt()
    reach = torch.where(sigmas > 0, sigmas * spread, math.inf)
    return logits.masked_fill(logits < best - reach, NEG_INF)


def keep_typical(logits: Tensor, typical_p: Tensor) -> Tensor:
    """Keep the tokens whose surprisal is nearest to the entropy, until they reach `typical_p` (Meister et al. 2023, arXiv:2202.00666).

    logits [rows, width] float32; typical_p [rows, 1] in 0..1, 1 keeps all. Returns the same shape, masked with -inf.
    """
    surprisal = -torch.log_softmax(logits, -1)
    probability = torch.exp(-surprisal)
    entropy = torch.special.entr(probability).sum(-1, keepdim=True)
    distance = (surprisal - entropy).abs()
    nearest = Candidates(-distance).sorted()
    assert nearest.ids is not None
    reached = probability.gather(-1, nearest.ids).cumsum(-1) < typical_p
    last = reached.sum(-1, keepdim=True).clamp(max=nearest.logits.shape[-1] - 1)
    farthest = -nearest.logits.gather(-1, last)
    return logits.masked_fill((distance > farthest) & (typical_p < 1), NEG_INF)


def keep_tail_free(logits: Tensor, tfs: Tensor) -> Tensor:
    """Cut where the curve of sorted probabilities has spent the share `tfs` of its curvature (Phénix & Egan 2019, "Tail Free Sampling").

    logits [rows, width] float32, best first; tfs [rows, 1] in 0..1, 1 keeps all. The best token always stays.
    The curve goes on as zero after the last token. Returns the same shape, masked with -inf.
    """
    probability = torch.nn.functional.pad(torch.softmax(logits, -1), (0, 2))
    curvature = probability.diff().diff().abs()
    spent = (curvature / curvature.sum(-1, keepdim=True)).cumsum(-1)
    out = torch.nn.functional.pad(spent[:, :-1] > tfs, (1, 0), value=False) & (tfs < 1)
    return logits.masked_fill(out, NEG_INF)


def cut_epsilon(logits: Tensor, epsilon: Tensor) -> Tensor:
    """Mask tokens less likely than `epsilon` (Hewitt et al. 2022, arXiv:2210.15191).

    logits [rows, width] float32; epsilon [rows, 1] as a probability, 0 keeps all. The best token always stays.
    Returns the same shape, masked with -inf.
    """
    return _cut_below(logits, logits.logsumexp(-1, keepdim=True) + epsilon.log())


def cut_eta(logits: Tensor, epsilon: Tensor) -> Tensor:
    """Mask tokens less likely than min(epsilon, √epsilon · e^-entropy) (Hewitt et al. 2022, arXiv:2210.15191).

    logits [rows, width] float32; epsilon [rows, 1] as a probability, 0 keeps all. The best token always stays.
    Returns the same shape, masked with -inf.
    """
    entropy = torch.special.entr(torch.softmax(logits, -1)).sum(-1, keepdim=True)
    eta = torch.minimum(epsilon.log(), epsilon.log() / 2 - entropy)
    return _cut_below(logits, logits.logsumexp(-1, keepdim=True) + eta)


def _cut_below(logits: Tensor, lowest: Tensor) -> Tensor:
    return logits.masked_fill(logits < lowest.clamp(max=logits.amax(-1, keepdim=True)), NEG_INF)
