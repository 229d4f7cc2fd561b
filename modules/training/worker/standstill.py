"""Whether a run gets anywhere: a loss that does not change by more than rounding is told, with the reason."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from modules.training.config import TrainingConfig

STEPS = 20
"""So many in a row have to bring nothing."""
_ROUNDING = {"float32": 1e-6, "float16": 1e-4, "bfloat16": 1e-4}
_NO_GRADIENT = 1e-6
_RATE = 0.5  # steps with less than this share of the learning rate, in the warm-up and at the end, say nothing


@dataclass(frozen=True)
class _Seen:
    step: int
    loss: float
    rate: float
    norm: float


class Standstill:
    """Looks at each step. reason: why nothing is being learnt now, None where something is or nothing can be said."""

    def __init__(self, config: TrainingConfig, dtype: str) -> None:
        """dtype: the number format of the computation, by torch's name."""
        self._config = config
        self._dtype = dtype
        self._seen: deque[_Seen] = deque(maxlen=STEPS)
        self._told = False
        self.reason: str | None = None

    def look(self, step: int, loss: float, rate: float, norm: float) -> str | None:
        """Take a step in; returns a sentence the first time that nothing is being learnt. norm: the gradient's length."""
        if rate < _RATE * self._config.learning_rate:
            return None
        self._seen.append(_Seen(step, loss, rate, norm))
        self.reason = self._why() if len(self._seen) == STEPS else None
        if self.reason is None or self._told:
            return None
        self._told = True
        return f"Nothing is being learnt, because {self.reason} (steps {self._seen[0].step} to {step})."

    def _why(self) -> str | None:
        losses = [one.loss for one in self._seen]
        if all(one.rate == 0 for one in self._seen):
            return "the learning rate is 0"
        if all(one.norm < _NO_GRADIENT for one in self._seen):
            if max(losses) < _NO_GRADIENT:
                return "the loss is 0: the model does already what the data shows"
            return "the gradient is 0: these rows ask for no change"
        if max(losses) - min(losses) <= _ROUNDING.get(self._dtype, 1e-6) * max(map(abs, losses)):
            return (
                f"the loss changes by rounding alone: the steps are smaller than numbers in {self._dtype} show. "
                f"Raise the learning rate, which is {self._config.learning_rate:g}"
            )
        return None
