"""The processes that train together: each computes its share of a step, and gradients are added up between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed, nn

_BUCKET = 16 << 20  # numbers that are sent at once


class Group:
    """This process among its fellows. With one process every method is the plain thing.

    in_step: every process must compute as many parts of a step as the others.
    """

    in_step = False

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        if self.size > 1 and not distributed.is_initialized():
            # The device of this process alone: several processes on one GPU cannot use NCCL.
            alone = cuda and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            distributed.init_process_group("nccl" if alone else "gloo")

    @property
    def is_first(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def prepare(self, model: Any) -> Any:
        """The model as this group computes it; before the optimiser is made."""
        return model

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of a part of the step; last: it is the step's last part."""
        loss.backward()

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every process gets the sum of all gradients."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        bucket: list[torch.Tensor] = []
        for parameter in parameters:
            assert parameter.grad is not None
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= _BUCKET:
                self._add(bucket)
                bucket = []
        self._add(bucket)

    def _add(self, gradients: Sequence[torch.Tensor]) -> None:
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        """The length of the gradient, after which it is at most `limit` (0: any)."""
        return float(nn.utils.clip_grad_norm_(parameters, limit or float("inf")))

    def weights(self, model: Any) -> dict[str, torch.Tensor] | None:
        """All weights together, for writing; None where the model has them itself."""
        return None

    def optimizer_state(self, model: Any, optimizer: torch.optim.Optimizer) -> Any:
        """What the optimiser remembers of the whole model."""
        return optimizer.state_dict()

    def set_optimizer_state(self, model: Any, optimizer: torch.optim.Optimizer, state: Any) -> None:
        """Give the optimiser back what `optimizer_state` said."""
        optimizer.load_state_dict(state)

    def totals(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device="cpu" if self._on_cpu() else self.device)
        distributed.all_reduce(numbers)
        return numbers.tolist()

    def gather(self, value: Any) -> list[Any]:
        """What every process says, in order of rank."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        distributed.all_gather_object(said, value)
        return said

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            distributed.barrier()

    def close(self) -> None:
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    def _on_cpu(self) -> bool:
        return distributed.get_backend() == "gloo"


def random_state(device: torch.device) -> dict[str, Any]:
    """Where the random numbers of this process stand."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
