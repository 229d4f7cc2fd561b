"""Optimisers by the names that the config has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from modules.training.config import TrainingConfig

_ON_GPUS = ("adamw-8bit", "paged-adamw-8bit", "paged-adamw")


def only_plain(config: TrainingConfig, device: torch.device) -> bool:
    """Whether the optimiser that was asked for does not exist on this device, so that plain AdamW takes its place."""
    return config.optimizer in _ON_GPUS and device.type != "cuda"


def make_optimizer(
    config: TrainingConfig, named: Sequence[tuple[str, nn.Parameter]], device: torch.device
) -> torch.optim.Optimizer:
    """`named`: the parameters to change. Biases and norms (one dimension) are not decayed."""
    groups: list[dict[str, Any]] = [
        {"params": [parameter for _, parameter in named if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for _, parameter in named if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adam: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.epsilon}
    if config.optimizer == "adamw" or only_plain(config, device):
        return torch.optim.AdamW(groups, fused=True, **adam)
    match config.optimizer:
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=config.learning_rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.beta1)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=config.learning_rate)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=config.learning_rate)
    from bitsandbytes.optim import adamw

    classes = {
        "adamw-8bit": adamw.AdamW8bit,
        "paged-adamw-8bit": adamw.PagedAdamW8bit,
        "paged-adamw": adamw.PagedAdamW32bit,
    }
    return classes[config.optimizer](groups, **adam)


def peak_memory(device: torch.device) -> int:
    """The most memory that was in use so far, in bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
