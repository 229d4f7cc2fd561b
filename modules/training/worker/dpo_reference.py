"""How likely every answer was before the first step: what dpo measures against, computed once and kept in the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from modules.errors import UserError
from modules.library.paths import written_whole
from modules.training.plan import micro_batches, share_out
from modules.training.samples import Sample
from modules.training.worker.distributed import Group
from modules.training.worker.forward import Forward

_TOKENS_AT_ONCE = 2048


def reference_of(path: Path, samples: Sequence[Sample], forward: Forward, group: Group, *, resumed: bool) -> list[float]:
    """Log-probabilities of the learnt tokens of each sample. Every process must call it. Raises UserError where they are lost."""
    import numpy as np

    if not path.exists():
        if resumed:
            raise UserError(f"{path.name} is missing: without it this run cannot go on. Copy its settings into a new one.")
        found = _computed(samples, forward, group)
        if group.is_first:
            with written_whole(path) as draft, draft.open("wb") as file:
                np.savez(file, scores=np.array(found, np.float32))
    group.wait()
    with np.load(path) as arrays:
        return arrays["scores"].tolist()


@torch.no_grad()
def _computed(samples: Sequence[Sample], forward: Forward, group: Group) -> list[float]:
    lengths = [len(sample.tokens) for sample in samples]
    shares = share_out([(index,) for index in range(len(samples))], lengths, group.size)
    parts = [micro_batches(one, lengths, rows=None, tokens=_TOKENS_AT_ONCE) for one in shares]
    groups = parts[group.rank]
    model = forward.trainee.model
    model.eval()
    mine = {}
    for indices in groups:
        for index, loss in zip(indices, forward.losses([samples[index] for index in indices]).tolist(), strict=True):
            mine[index] = -loss
    for _ in range(max(map(len, parts)) - len(groups) if group.in_step else 0):
        forward.losses([samples[0]])
    model.train()
    everything = {index: score for scores in group.gather(mine) for index, score in scores.items()}
    return [everything[index] for index in range(len(samples))]
