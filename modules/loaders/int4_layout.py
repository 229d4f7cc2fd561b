"""4-bit layers of bitsandbytes on processors that multiply in bfloat16: where the layout it has for them is right."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit

_ROWS = 32
"""The layout holds the rows of a layer in blocks of so many."""


def choose_layout(model: Any, *, training: bool = False) -> None:
    """Let only those 4-bit layers of `model` turn into bitsandbytes' layout for such processors that compute the same with it.

    A layer turns at its first product in evaluation. After that it has no gradients, even in training; it computes in bfloat16,
    whatever was asked for; and it cannot be turned back without loss.
    """
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            weight: Any = layer.weight
            whole = layer.out_features % _ROWS == 0 and layer.in_features % weight.blocksize == 0
            fits = whole and layer.compute_dtype == torch.bfloat16 and not training
            layer.support_avx512bf16_for_cpu = layer.support_avx512bf16_for_cpu and fits
