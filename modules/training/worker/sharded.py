"""FSDP: each process holds a part of every weight, and the others' parts only while they are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed, nn

from modules.training.worker.distributed import Group


class ShardedGroup(Group):
    """Processes that share one copy of the model. Every process must compute as many parts of a step as the others."""

    in_step = True

    def __init__(self, *, keep_weights: bool = False) -> None:
        """keep_weights: the weights stay whole between forward and backward, only gradients and optimiser are divided."""
        super().__init__()
        self._keep_weights = keep_weights

    def prepare(self, model: Any) -> Any:
        """Divide the weights of each layer, then the rest. All weights of a layer need one number format."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        kinds = set(getattr(model, "_no_split_modules", None) or ())
        common = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        for parameter in model.parameters():
            parameter.data = parameter.data.to(common)
        for module in list(model.modules()):
            if type(module).__name__ in kinds:
                fully_shard(module, mesh=mesh, reshard_after_forward=not self._keep_weights)
        fully_shard(model, mesh=mesh, reshard_after_forward=not self._keep_weights)
        return model

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """FSDP takes the mean over processes where a step's loss is a sum."""
        (loss * self.size).backward()

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """FSDP has done it in the backward pass."""

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        norm: Any = nn.utils.clip_grad_norm_(parameters, limit or float("inf"), foreach=False)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def weights(self, model: Any) -> dict[str, torch.Tensor] | None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # type: ignore[return-value]

    def optimizer_state(self, model: Any, optimizer: torch.optim.Optimizer) -> Any:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def set_optimizer_state(self, model: Any, optimizer: torch.optim.Optimizer, state: Any) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))

    def wait(self) -> None:
        distributed.barrier()
