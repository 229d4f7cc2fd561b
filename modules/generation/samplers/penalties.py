"""Penalties on tokens that are in the text already."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def penalise_repeated(logits: Tensor, places: Tensor, penalty: Tensor) -> Tensor:
    """Divide positive logits by `penalty`, multiply negative ones (Keskar et al. 2019, arXiv:1909.05858).

    logits [rows, vocabulary] float32; places [n] int64: row × vocabulary + token, each once; penalty [n], 1 changes nothing.
    Below 1 it makes tokens more likely: transformers' encoder repetition penalty is this with the prompt's tokens and 1 / penalty.
    """
    flat = logits.reshape(-1)
    old = flat[places]
    return flat.scatter(0, places, torch.where(old < 0, old * penalty, old / penalty)).view_as(logits)


def add_at(logits: Tensor, places: Tensor, amounts: Tensor) -> Tensor:
    """Add `amounts` [n] to the logits at `places` [n]; a place may come more than once. Shapes as in `penalise_repeated`."""
    return logits.reshape(-1).scatter_add(0, places, amounts).view_as(logits)


def frequency_and_presence(counts: np.ndarray, frequency: float, presence: float) -> np.ndarray:
    """What to add to the logits of tokens that the reply used `counts` times, as the OpenAI API defines it. float32."""
    return -(frequency * counts + presence * (counts > 0)).astype(np.float32)


def ends_of_repeated_ngrams(tokens: np.ndarray, size: int) -> np.ndarray:
    """The tokens that would repeat a run of `size` tokens of `tokens` (Paulus et al. 2017, arXiv:1705.04304); 0 is none.

    tokens [n] int64. A token may come more than once.
    """
    if size == 0 or len(tokens) < size:
        return tokens[:0]
    starts = np.arange(len(tokens) - size + 1)
    for offset in range(size - 1):
        starts = starts[tokens[starts + offset] == tokens[len(tokens) - size + 1 + offset]]
    return tokens[starts + size - 1]
