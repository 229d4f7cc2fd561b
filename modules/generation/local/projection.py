"""The matrix products of a layer: weights that read the same input as one matrix, in the order that the processor likes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 16
"""oneDNN packs weights for a number of rows; this one is good for few and for many."""


class Projection:
    """[m(x) for m in modules], side by side: x [tokens, in] to [tokens, sum of out].

    parts: (module name, first column, last column) of each, for adapters.
    """

    def __init__(self, modules: Sequence[nn.Module], names: Sequence[str]) -> None:
        self._modules: list[Any] = list(modules)
        sizes: list[int] = [module.out_features for module in self._modules]
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        self.parts = tuple(zip(names, [0, *ends[:-1]], ends, strict=True))
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self._packed: Tensor | None = None
        if all(type(module) is nn.Linear for module in modules):
            self._join()

    def _join(self) -> None:
        modules: list[Any] = self._modules
        if any(module.bias is not None for module in modules):
            biases = [
                module.bias if module.bias is not None else module.weight.new_zeros(module.out_features) for module in modules
            ]
            self.bias = torch.cat([bias.detach() for bias in biases])
        weight = torch.cat([module.weight.detach() for module in modules]) if len(modules) > 1 else modules[0].weight.detach()
        self.weight = weight
        for module, (_, first, last) in zip(modules, self.parts, strict=True):
            module.weight.data = weight[first:last]

    def pack(self) -> None:
        """Give the weights, the modules' own too, up for a form that oneDNN reads faster, where there is one for them."""
        if self.weight is None or not _can_pack(self.weight):
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, ROWS)
        self.weight = None
        for module in self._modules:
            module.weight = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise.default(x, self._packed, self.bias, "none", [], "")
        if self.weight is not None:
            return functional.linear(x, self.weight, self.bias)
        if len(self._modules) == 1:
            return self._modules[0](x)
        return torch.cat([module(x) for module in self._modules], -1)

    def added_to(self, before: Tensor, x: Tensor) -> Tensor:
        """before [tokens, out] + self(x), as a new tensor; in one operation where that is possible."""
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, before, self._packed, self.bias, "add")
        return before + self(x)


def _can_pack(weight: Tensor) -> bool:
    """Whether oneDNN has a form of its own for such weights."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


class Head:
    """The scores: x [tokens, hidden] to [tokens, vocabulary].

    Its matrix is often the embedding as well, so it stays as it is; oneDNN is quicker with it than the default.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.weight: Tensor | None = module.weight if type(module) is nn.Linear else None
        self.bias: Tensor | None = getattr(module, "bias", None)
        self._direct = type(module) is nn.Linear and _can_pack(module.weight)

    def __call__(self, x: Tensor) -> Tensor:
        if self._direct and x.shape[0]:
            return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return self._module(x)
