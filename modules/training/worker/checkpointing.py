"""What a checkpoint holds, and how a run goes on from it: weights, optimiser, random numbers, position."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from modules.errors import Unavailable
from modules.library.disk import need_space
from modules.training.checkpoints import COMPLETE, Checkpoint, new_checkpoint
from modules.training.worker.distributed import Group, random_state, set_random_state
from modules.training.worker.model import Trainee, save_weights

NOT_WEIGHTS = ("optimizer.pt", "random.pt", "progress.json", COMPLETE)
"""Files of a checkpoint that are not for those who use its weights."""


@dataclass
class Progress:
    """What a run remembers beside weights. step: how many are done; worse: measurements in a row without a better one."""

    step: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0
    smoothed: float = 0.0
    smoothing: int = 0

    def add_loss(self, loss: float) -> float:
        """Take a step's loss into the smoothed one, and return that."""
        self.smoothed = 0.9 * self.smoothed + 0.1 * loss
        self.smoothing += 1
        return self.smoothed / (1 - 0.9**self.smoothing)


def save_checkpoint(
    folder: Path, trainee: Trainee, optimizer: torch.optim.Optimizer, progress: Progress, group: Group
) -> Path | None:
    """Write a checkpoint, by the first process alone; every process must call it. Raises Unavailable where the disk is full."""
    states = group.gather(random_state(trainee.device))
    weights = group.weights(trainee.model)
    remembered = group.optimizer_state(trainee.model, optimizer)
    if not group.is_first:
        return None
    need_space_for(folder, trainee)
    with new_checkpoint(folder, progress.step) as draft:
        save_weights(trainee, draft, weights)
        _write(remembered, draft / "optimizer.pt")
        _write(states, draft / "random.pt")
        (draft / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    return folder / f"step-{progress.step:06d}"


def _write(state: Any, path: Path) -> None:
    """Through a file of Python's: torch's own leaves out why the disk refused."""
    with path.open("wb") as file:
        torch.save(state, file)


def need_space_for(folder: Path, trainee: Trainee) -> None:
    """Raises Unavailable where a checkpoint (weights and two moments of each) does not fit on the disk."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in trainee.trainable)
    try:
        need_space(folder, 3 * size, "A checkpoint")
    except Unavailable as error:
        raise Unavailable(error.message.split(" Make room")[0] + " Make room and resume the run.") from None


def restore(checkpoint: Checkpoint, trainee: Trainee, optimizer: torch.optim.Optimizer, group: Group) -> Progress:
    """Put optimiser and random numbers back; the weights were loaded with the model."""
    path = checkpoint.path
    state: Any = torch.load(path / "optimizer.pt", map_location=trainee.device, weights_only=True)
    group.set_optimizer_state(trainee.model, optimizer, state)
    states = torch.load(path / "random.pt", map_location="cpu", weights_only=True)
    if group.rank < len(states):
        set_random_state(states[group.rank], trainee.device)
    return Progress(**json.loads((path / "progress.json").read_text(encoding="utf-8")))
