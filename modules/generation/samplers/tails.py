"""Filters that look at the shape of the distribution: typical, tail-free, epsilon and eta."""

from __future__ import annotations

import torch
from torch import Tensor

from modules.generation.samplers.candidates import NEVER, Candidates


def keep_typical(scores: Tensor, typical_p: Tensor) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy, until they reach `typical_p` (Meister et al. 2023, arXiv:2202.00666).

    scores [rows, width] float32; typical_p [rows, 1] in 0..1, 1 keeps all. Returns the same shape, masked with -inf.
    """
    surprise = -torch.log_softmax(scores, -1)
    probability = torch.exp(-surprise)
    entropy = torch.special.entr(probability).sum(-1, keepdim=True)
    distance = (surprise - entropy).abs()
    nearest = Candidates(-distance).sorted()
    assert nearest.ids is not None
    reached = probability.gather(-1, nearest.ids).cumsum(-1) < typical_p
    last = reached.sum(-1, keepdim=True).clamp(max=nearest.scores.shape[-1] - 1)
    farthest = -nearest.scores.gather(-1, last)
    return scores.masked_fill((distance > farthest) & (typical_p < 1), NEVER)


def keep_tail_free(scores: Tensor, tfs: Tensor) -> Tensor:
    """Cut where the curve of sorted probabilities has spent the share `tfs` of its curvature (Phénix & Egan 2019, "Tail Free Sampling").

    scores [rows, width] float32, best first; tfs [rows, 1] in 0..1, 1 keeps all. The best token always stays.
    The curve goes on as zero after the last token. Returns the same shape, masked with -inf.
    """
    probability = torch.nn.functional.pad(torch.softmax(scores, -1), (0, 2))
    curvature = probability.diff().diff().abs()
    spent = (curvature / curvature.sum(-1, keepdim=True)).cumsum(-1)
    out = torch.nn.functional.pad(spent[:, :-1] > tfs, (1, 0), value=False) & (tfs < 1)
    return scores.masked_fill(out, NEVER)


def cut_epsilon(scores: Tensor, epsilon: Tensor) -> Tensor:
    """Mask tokens less likely than `epsilon` (Hewitt et al. 2022, arXiv:2210.15191).

    scores [rows, width] float32; epsilon [rows, 1] as a probability, 0 keeps all. The best token always stays.
    Returns the same shape, masked with -inf.
    """
    return _cut_below(scores, scores.logsumexp(-1, keepdim=True) + epsilon.log())


def cut_eta(scores: Tensor, epsilon: Tensor) -> Tensor:
    """Mask tokens less likely than min(epsilon, √epsilon · e^-entropy) (Hewitt et al. 2022, arXiv:2210.15191).

    scores [rows, width] float32; epsilon [rows, 1] as a probability, 0 keeps all. The best token always stays.
    Returns the same shape, masked with -inf.
    """
    entropy = torch.special.entr(torch.softmax(scores, -1)).sum(-1, keepdim=True)
    eta = torch.minimum(epsilon.log(), epsilon.log() / 2 - entropy)
    return _cut_below(scores, scores.logsumexp(-1, keepdim=True) + eta)


def _cut_below(scores: Tensor, lowest: Tensor) -> Tensor:
    return scores.masked_fill(scores < lowest.clamp(max=scores.amax(-1, keepdim=True)), NEVER)
