"""What a run aims at: the loss of some units of its data, a unit being a row (sft) or a pair of answers (dpo)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from modules.training.samples import Sample
from modules.training.worker.forward import Forward


class Objective(Protocol):
    """Losses over numbered units of one part of the data."""

    lengths: list[int]
    """Tokens of each unit."""

    def weight(self, unit: int) -> int:
        """What the unit counts for in the mean."""
        ...

    def loss_sum(self, units: Sequence[int]) -> tuple[Tensor, int]:
        """(the sum of the losses, with its graph; how many units come out as people want them, where that can be said)."""
        ...


class Imitation:
    """The answers of the data, token by token: each learnt token counts the same."""

    def __init__(self, forward: Forward, samples: Sequence[Sample]) -> None:
        self.lengths = [len(sample.tokens) for sample in samples]
        self._forward = forward
        self.samples = samples

    def weight(self, unit: int) -> int:
        return self.samples[unit].labels

    def loss_sum(self, units: Sequence[int]) -> tuple[Tensor, int]:
        return self._forward.loss_sum([self.samples[unit] for unit in units]), 0


class Preference:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290): each pair counts the same.

    How much likelier an answer has become since the beginning is its reward; the chosen answer's is to exceed the rejected
    one's, and `beta` says how much of that is wanted. The reference is the model before the first step, asked once.
    """

    def __init__(self, forward: Forward, samples: Sequence[Sample], reference: Sequence[float], beta: float) -> None:
        """samples: chosen and rejected in turn; reference: the log-probability of each before the first step."""
        self.lengths = [len(one.tokens) + len(other.tokens) for one, other in zip(samples[::2], samples[1::2], strict=True)]
        self._forward = forward
        self.samples = samples
        self._reference = torch.tensor(reference, dtype=torch.float32, device=forward.trainee.device)
        self._beta = beta

    def weight(self, unit: int) -> int:
        return 1

    def loss_sum(self, units: Sequence[int]) -> tuple[Tensor, int]:
        places = [at for unit in units for at in (2 * unit, 2 * unit + 1)]
        gained = -self._forward.losses([self.samples[at] for at in places]) - self._reference[places]
        margins = gained[::2] - gained[1::2]
        return -functional.logsigmoid(self._beta * margins).sum(), int((margins > 0).sum())
