"""The choice of the next token for a batch of rows, each by its own parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modules.generation.samplers.candidates import NEVER, Candidates
from modules.generation.samplers.contrastive import MAX_CANDIDATES
from modules.generation.samplers.guidance import guide
from modules.generation.samplers.mirostat import corrected, surprise
from modules.generation.samplers.pipeline import Batch, on_device, run
from modules.generation.samplers.sequence_sampler import RowSampler

__all__ = ["Choice", "Detail", "RowSampler", "choose", "details", "guide", "likeliest", "remaining"]


@dataclass(frozen=True)
class Detail:
    """What the model itself thought of a chosen token, as tensors on the device.

    logprob []: natural log of its probability. ids [k], logprobs [k]: the likeliest tokens, best first.
    """

    logprob: Tensor
    ids: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class Choice:
    """The next token of each row, on the device: tokens [rows] int64, -1 where none may come (`accept` says why).

    details: one for each row, None where nobody asked.
    """

    tokens: Tensor
    details: tuple[Detail | None, ...]


def choose(logits: Tensor, rows: Sequence[RowSampler], *, logprobs: Sequence[int | None]) -> Choice:
    """Choose the next token of every row. On CUDA nothing here waits for the device.

    logits [rows, vocabulary], any float dtype, not changed; logprobs: for each row None, or how many alternatives to report.
    The details are of the model's own distribution (log-softmax of `logits`), before any sampler, as OpenAI reports them.
    A row's choice depends on its own scores, parameters, seed and history alone, whatever is beside it.
    """
    ways: dict[tuple[bool, tuple[str, ...]], list[int]] = {}
    for index, row in enumerate(rows):
        ways.setdefault((row.params.greedy, row.path), []).append(index)
    if len(ways) == 1:
        return Choice(tokens := _chosen(logits, rows), details(logits, tokens, logprobs))
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    for members in ways.values():
        where = on_device(np.array(members), logits.device)
        tokens[where] = _chosen(logits[where], [rows[index] for index in members])
    return Choice(tokens, details(logits, tokens, logprobs))


def likeliest(logits: Tensor, row: RowSampler) -> tuple[Tensor, Tensor]:
    """The candidates of a row of contrastive search: ids [k] and probabilities [k] float32, best first; none where all are out."""
    scores = _walked(logits, [row]).by_id(logits.shape[-1]).scores[0]
    best = torch.softmax(scores, -1).topk(min(row.params.top_k, MAX_CANDIDATES, len(scores)))
    possible = best.values > 0
    return best.indices[possible], best.values[possible]


def remaining(logits: Tensor, rows: Sequence[RowSampler]) -> Tensor:
    """The scores that the next tokens would be drawn from, [rows, vocabulary] float32; -inf for what is out."""
    return torch.cat([_remaining(logits[index : index + 1], row) for index, row in enumerate(rows)])


def _remaining(logits: Tensor, row: RowSampler) -> Tensor:
    if row.params.contrastive:
        ids, probabilities = likeliest(logits, row)
        return torch.full_like(logits, NEVER, dtype=torch.float32).index_copy_(-1, ids, probabilities.log()[None])
    scores = _walked(logits, [row]).by_id(logits.shape[-1]).scores
    if not row.params.greedy:
        return scores
    best = scores.max(-1, keepdim=True)
    return torch.full_like(scores, NEVER).scatter_(-1, best.indices, best.values)


def _walked(logits: Tensor, rows: Sequence[RowSampler]) -> Candidates:
    """What is left of `logits` after all steps of the one path that `rows` have."""
    candidates = Candidates(logits.float())
    batch = Batch(rows, logits.shape[-1], logits.device)
    for name in rows[0].path:
        candidates = run(name, candidates, batch)
    return candidates


def _chosen(logits: Tensor, rows: Sequence[RowSampler]) -> Tensor:
    """Token ids [rows] for rows of one path; -1 where all scores are -inf or not numbers."""
    if rows[0].params.greedy:
        best = _walked(logits, rows).scores.max(-1) if rows[0].path else logits.max(-1)
        return torch.where(best.values > NEVER, best.indices, -1)
    candidates = _walked(logits, rows)
    batch = Batch(rows, logits.shape[-1], logits.device)
    place, possible = _drawn(candidates.scores, batch.draws(0))
    if rows[0].surprise_limit is not None:
        _correct_mirostat(candidates.scores, place, batch)
    return torch.where(possible, candidates.token(place), -1)


def _drawn(scores: Tensor, lots: Tensor) -> tuple[Tensor, Tensor]:
    """The place [rows] where the cumulated probability passes lots [rows, 1], and whether there is any probability at all."""
    cumulated = torch.softmax(scores, -1).cumsum(-1, dtype=torch.float64)
    total = cumulated[:, -1:]
    place = torch.searchsorted(cumulated, lots * total, right=True).clamp(max=scores.shape[-1] - 1)
    return place[:, 0], total[:, 0] > 0


def _correct_mirostat(scores: Tensor, place: Tensor, batch: Batch) -> None:
    limits = torch.stack([row.surprise_limit for row in batch.rows if row.surprise_limit is not None])
    observed = surprise(scores).gather(-1, place[:, None])
    better = corrected(limits[:, None], observed, batch["mirostat_tau"], batch["mirostat_eta"])
    for row, limit in zip(batch.rows, better[:, 0].unbind(), strict=True):
        row.surprise_limit = limit


def details(logits: Tensor, tokens: Tensor, logprobs: Sequence[int | None]) -> tuple[Detail | None, ...]:
    """What the model thought of tokens [rows], by its own scores [rows, vocabulary]; logprobs as for `choose`."""
    asked = [index for index, count in enumerate(logprobs) if count is not None]
    if not asked:
        return (None,) * len(logprobs)
    where = on_device(np.array(asked), logits.device)
    scores = torch.log_softmax(logits[where].float(), -1)
    own = scores.gather(-1, tokens[where].clamp(min=0)[:, None])[:, 0]
    best = torch.topk(scores, min(max(logprobs[index] or 0 for index in asked), logits.shape[-1]))
    found: list[Detail | None] = [None] * len(logprobs)
    for place, index in enumerate(asked):
        count = logprobs[index] or 0
        found[index] = Detail(own[place], best.indices[place, :count], best.values[place, :count])
    return tuple(found)
