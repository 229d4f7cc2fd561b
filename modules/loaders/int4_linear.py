"""4-bit GPTQ layers on a processor: GPTQModel's kernel, without what it does around it for every token."""

from __future__ import annotations

from typing import Any

import torch
from gptqmodel.nn_modules.qlinear.torch_aten_kernel import TorchAtenLinear
from torch import Tensor


class Int4Linear(TorchAtenLinear):
    """The same numbers as its parent, once the weights are packed.

    order: the place of each input in the packed weights, where they were reordered (act-order), else None.
    """

    order: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        if self.order is not None:
            rows = rows[:, self.order]
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.qweight, self.group_size, self.scales_and_zeros)
        out = out.to(x.dtype).reshape(*x.shape[:-1], -1)
        if self.bias is not None:
            out += self.bias
        return out


def speed_up(model: Any) -> None:
    """Pack the 4-bit layers of `model` now instead of at their first use, and let them compute as Int4Linear."""
    for module in model.modules():
        if type(module) is TorchAtenLinear and module.adapter is None:
            _pack(module)


def _pack(layer: Any) -> None:
    if layer.qweight.device.type != "cpu":
        return
    layer.transform("cpu")
    order = layer.ret_idx.long()
    layer.order = None if torch.equal(order, torch.arange(len(order))) else order
    layer.linear_mode = "inference"
    # Only scales_and_zeros is read from now on.
    layer.scales = layer.qzeros = layer.g_idx = layer.ret_idx = None
    layer.__class__ = Int4Linear
