"""TensorBoard's event files of a run, beside our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules.training.events import Evaluated, Stepped


class Board:
    """Writes nothing where tensorboardX is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            self._writer: Any = None
            return
        # purge_step hides what an earlier process wrote of steps that are done anew.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def step(self, event: Stepped) -> None:
        """Loss, learning rate, length of the gradient, tokens per second."""
        for name, value in (
            ("train/loss", event.loss),
            ("train/learning_rate", event.learning_rate),
            ("train/gradient_norm", event.gradient_norm),
            ("train/tokens_per_second", event.tokens / event.seconds),
        ):
            self._add(name, value, event.step)
        if event.preferred is not None:
            self._add("train/preferred", event.preferred, event.step)

    def evaluated(self, event: Evaluated) -> None:
        """Loss on the held-out rows."""
        self._add("eval/loss", event.loss, event.step)

    def _add(self, name: str, value: float, step: int) -> None:
        if self._writer:
            self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Write what a thread of tensorboardX still holds, which its flush passes over."""
        if self._writer:
            self._writer.close()
