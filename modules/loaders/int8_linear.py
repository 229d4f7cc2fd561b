"""8-bit layers of bitsandbytes, computed without its detours: no log line per layer and token, and quickly on a processor."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.nn.modules import Linear8bitLt
from torch import Tensor

AT_ONCE = 1 << 20
"""How many weights are floats at a time on a processor: as many as its cache holds, instead of a whole layer."""


class Int8Linear(Linear8bitLt):
    """LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339), for inference: its parent's numbers.

    The parent's forward logs a warning whenever its input is not float16, and on a processor without AVX-512 it turns all
    weights into floats for every token.
    """

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self.weight, "CB", None) is not None:
            self.init_8bit_state()
        weights, scales = self.state.CB, self.state.SCB
        assert weights is not None and scales is not None
        rows = x.reshape(-1, x.shape[-1])
        whole, row_scales, outliers = functional.int8_vectorwise_quant(rows.half(), threshold=self.state.threshold)
        operations = torch.ops.bitsandbytes
        bias = self.bias.to(rows.dtype) if self.bias is not None else None
        if rows.device.type == "cpu" and not _has_whole_products():
            sums = _product(whole, weights).to(torch.int32)
            out = operations.int8_mm_dequant(sums, row_scales, scales, dtype=rows.dtype, bias=bias)
        else:
            out = operations.int8_scaled_mm(whole, weights, row_scales, scales, bias=bias, dtype=rows.dtype)
        if outliers is not None and len(outliers):
            columns = functional.int8_vectorwise_dequant(weights[:, outliers].contiguous(), scales)
            out = out.addmm(rows[:, outliers], columns.to(rows.dtype).t())
        return out.reshape(*x.shape[:-1], -1)


def _has_whole_products() -> bool:
    """Whether this processor multiplies int8 quickly; bitsandbytes uses that."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _product(whole: Tensor, weights: Tensor) -> Tensor:
    """whole [n, in] int8 times weights [out, in] int8 → [n, out] float32."""
    rows = whole.float()
    parts = weights.split(max(AT_ONCE // weights.shape[1], 1))
    return torch.cat([rows @ part.float().t() for part in parts], dim=1) if len(parts) > 1 else rows @ weights.float().t()


def speed_up(model: Any) -> None:
    """Let every 8-bit layer of `model` compute as Int8Linear. It stays the layer that PEFT and others look for."""
    for module in model.modules():
        if type(module) is Linear8bitLt:
            module.__class__ = Int8Linear
