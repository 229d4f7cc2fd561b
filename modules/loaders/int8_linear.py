"""8-bit layers of bitsandbytes, computed without its detours: no log line per layer and token, and quickly on a processor."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor

FEW_ROWS = 16
"""Up to this many rows, torch's kernel for 8-bit weights is quicker than turning the weights into floats."""


class Int8Linear(Linear8bitLt):
    """LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339), for inference.

    On a GPU these are its parent's numbers; the parent's forward logs a warning whenever its input is not float16.
    On a processor the input keeps 16 bits instead of being cut to 8, which is nearer to the model's own numbers, and many
    times quicker than the parent, which turns the weights into floats for every token.
    """

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self.weight, "CB", None) is not None:
            self.init_8bit_state()
        weights, scales = self.state.CB, self.state.SCB
        assert weights is not None and scales is not None
        rows = x.reshape(-1, x.shape[-1])
        # Widths that are not a multiple of the vector length crash torch's kernel.
        if rows.device.type == "cpu" and self.in_features % 32 == 0:
            out = _wide_input(rows, weights, scales / 127, self.bias)
        else:
            out = _whole_input(rows, weights, scales, self.bias, self.state.threshold)
        return out.reshape(*x.shape[:-1], -1)


def _wide_input(rows: Tensor, weights: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """rows [n, in] times weights [out, in] int8 times scales [out] float32."""
    if len(rows) > FEW_ROWS:
        out = rows.float() @ weights.float().t()
    else:
        out = torch.ops.aten._weight_int8pack_mm(
            rows.bfloat16(), weights, rows.new_ones(len(weights), dtype=torch.bfloat16)
        ).float()
    out *= scales
    if bias is not None:
        out += bias
    return out.to(rows.dtype)


def _whole_input(rows: Tensor, weights: Tensor, scales: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """As bitsandbytes does it: rows in 8 bits, but for the columns with a number of at least `threshold`."""
    operations = torch.ops.bitsandbytes
    bias = bias.to(rows.dtype) if bias is not None else None
    whole, row_scales, outliers = functional.int8_vectorwise_quant(rows.half(), threshold=threshold)
    if threshold > 0:
        return operations.int8_mixed_scaled_mm(rows, whole, weights, row_scales, scales, outliers, bias)[0]
    return operations.int8_scaled_mm.default(whole, weights, row_scales, scales, bias=bias, dtype=rows.dtype)


def speed_up(model: Any) -> None:
    """Let every 8-bit layer of `model` compute as Int8Linear. It stays the layer that PEFT and others look for."""
    for module in model.modules():
        if type(module) is Linear8bitLt:
            module.__class__ = Int8Linear
