"""Temperature, fixed or following the uncertainty, and quadratic smoothing: they reshape the logits and drop nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from modules.generation.samplers.candidates import NEG_INF

LEAST = -1e9
"""Farther from the best than any score that counts; its cube is still a number."""


def apply_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """logits / temperature. logits [rows, width] float32; temperature [rows, 1] above 0, 1 changes nothing."""
    return logits / temperature


def dynamic_temperature(logits: Tensor, low: Tensor, high: Tensor, exponent: Tensor) -> Tensor:
    """The temperature [rows, 1] for each row: `low` where it is certain, `high` where all tokens are equally likely.

    In between it is low + (high - low) · (entropy / greatest entropy) ^ exponent (kalomaze 2023, "dynatemp").
    logits [rows, width] float32; the others [rows, 1].
    """
    entropy = torch.special.entr(torch.softmax(logits, -1)).sum(-1, keepdim=True)
    greatest = (logits > NEG_INF).sum(-1, keepdim=True).log()
    share = torch.where(greatest > 0, entropy / greatest, 0.0).clamp(0, 1)
    return low + (high - low) * share.pow(exponent)


def smooth_quadratically(logits: Tensor, factor: Tensor, curve: Tensor) -> Tensor:
    """Bend the logits around the best: best - factor · (k · d² - s · d³), d = score - best (kalomaze 2024, "smooth sampling").

    k = (3 - curve) / 2 and s = (curve - 1) / 2, so that curve 1 is the plain parabola. logits [rows, width] float32;
    factor [rows, 1], 0 changes nothing; curve [rows, 1]; above 3, tokens near the best may overtake it.
    """
    best = logits.amax(-1, keepdim=True)
    away = (logits - best).clamp_(min=LEAST)
    flat, steep = factor * (3 - curve) / 2, factor * (curve - 1) / 2
    bent = (away * steep).sub_(flat).mul_(away).mul_(away).add_(best)
    return torch.where((logits > NEG_INF) & (factor > 0), bent, logits)
