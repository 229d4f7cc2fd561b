"""The choice of the next token for a batch of rows, each by its own parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modules.generation.samplers.candidates import NEG_INF, Candidates
from modules.generation.samplers.contrastive import MAX_CANDIDATES
from modules.generation.samplers.guidance import guide
from modules.generation.samplers.mirostat import corrected, surprisal
from modules.generation.samplers.pipeline import Batch, on_device, run
from modules.generation.samplers.sequence_sampler import SequenceSampler

__all__ = ["SampledTokens", "SequenceSampler", "TokenLogprobs", "choose", "details", "guide", "likeliest", "remaining"]


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of a chosen token by the model itself, as tensors on the device.

    logprob []: natural log of its probability. ids [k], logprobs [k]: the likeliest tokens, best first.
    """

    logprob: Tensor
    ids: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class SampledTokens:
    """The next token of each row, on the device: tokens [rows] int64, -1 where none may come (`accept` says why).

    details: one for each row, None where nobody asked.
    """

    tokens: Tensor
    details: tuple[TokenLogprobs | None, ...]


def choose(logits: Tensor, rows: Sequence[SequenceSampler], *, logprobs: Sequence[int | None]) -> SampledTokens:
    """Choose the next token of every row. On CUDA nothing here waits for the device.

    logits [rows, vocabulary], any float dtype, not changed; logprobs: for each row None, or how many alternatives to report.
    The details are of the model's own distribution (log-softmax of `logits`), before any sampler, as OpenAI reports them.
    A row's choice depends on its own logits, parameters, seed and history alone, whatever is beside it.
    """
    chains: dict[tuple[bool, tuple[str, ...]], list[int]] = {}
    for index, row in enumerate(rows):
        chains.setdefault((row.params.greedy, row.chain), []).append(index)
    if len(chains) == 1:
        return SampledTokens(tokens := _chosen(logits, rows), details(logits, tokens, logprobs))
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    for members in chains.values():
        where = on_device(np.array(members), logits.device)
        tokens[where] = _chosen(logits[where], [rows[index] for index in members])
    return SampledTokens(tokens, details(logits, tokens, logprobs))


def likeliest(logits: Tensor, row: SequenceSampler) -> tuple[Tensor, Tensor]:
    """The candidates of a row of contrastive search: ids [k] and probabilities [k] float32, best first; none where all are out."""
    logits = _processed(logits, [row]).by_id(logits.shape[-1]).logits[0]
    best = torch.softmax(logits, -1).topk(min(row.params.top_k, MAX_CANDIDATES, len(logits)))
    possible = best.values > 0
    return best.indices[possible], best.values[possible]


def remaining(logits: Tensor, rows: Sequence[SequenceSampler]) -> Tensor:
    """The logits that the next tokens would be drawn from, [rows, vocabulary] float32; -inf for what is out."""
    return torch.cat([_remaining(logits[index : index + 1], row) for index, row in enumerate(rows)])


def _remaining(logits: Tensor, row: SequenceSampler) -> Tensor:
    if row.params.contrastive:
        ids, probabilities = likeliest(logits, row)
        return torch.full_like(logits, NEG_INF, dtype=torch.float32).index_copy_(-1, ids, probabilities.log()[None])
    logits = _processed(logits, [row]).by_id(logits.shape[-1]).logits
    if not row.params.greedy:
        return logits
    best = logits.max(-1, keepdim=True)
    return torch.full_like(logits, NEG_INF).scatter_(-1, best.indices, best.values)


def _processed(logits: Tensor, rows: Sequence[SequenceSampler]) -> Candidates:
    """What is left of `logits` after the one sampler chain that `rows` have."""
    candidates = Candidates(logits.float())
    batch = Batch(rows, logits.shape[-1], logits.device)
    for name in rows[0].chain:
        candidates = run(name, candidates, batch)
    return candidates


def _chosen(logits: Tensor, rows: Sequence[SequenceSampler]) -> Tensor:
    """Token ids [rows] for rows of one chain; -1 where all logits are -inf or not numbers."""
    if rows[0].params.greedy:
        best = _processed(logits, rows).logits.max(-1) if rows[0].chain else logits.max(-1)
        return torch.where(best.values > NEG_INF, best.indices, -1)
    candidates = _processed(logits, rows)
    batch = Batch(rows, logits.shape[-1], logits.device)
    place, possible = _drawn(candidates.logits, batch.draws(0))
    if rows[0].mu is not None:
        _correct_mirostat(candidates.logits, place, batch)
    return torch.where(possible, candidates.token(place), -1)


def _drawn(logits: Tensor, lots: Tensor) -> tuple[Tensor, Tensor]:
    """The place [rows] where the cumulated probability passes lots [rows, 1], and whether there is any probability at all."""
    cumulated = torch.softmax(logits, -1).cumsum(-1, dtype=torch.float64)
    total = cumulated[:, -1:]
    place = torch.searchsorted(cumulated, lots * total, right=True).clamp(max=logits.shape[-1] - 1)
    return place[:, 0], total[:, 0] > 0


def _correct_mirostat(logits: Tensor, place: Tensor, batch: Batch) -> None:
    mu = torch.stack([row.mu for row in batch.rows if row.mu is not None])
    observed = surprisal(logits).gather(-1, place[:, None])
    better = corrected(mu[:, None], observed, batch["mirostat_tau"], batch["mirostat_eta"])
    for row, next_mu in zip(batch.rows, better[:, 0].unbind(), strict=True):
        row.mu = next_mu


def details(logits: Tensor, tokens: Tensor, logprobs: Sequence[int | None]) -> tuple[TokenLogprobs | None, ...]:
    """Log-probabilities of tokens [rows] by the model's own logits [rows, vocabulary]; logprobs as for `choose`."""
    asked = [index for index, count in enumerate(logprobs) if count is not None]
    if not asked:
        return (None,) * len(logprobs)
    where = on_device(np.array(asked), logits.device)
    known = torch.log_softmax(logits[where].float(), -1)
    own = known.gather(-1, tokens[where].clamp(min=0)[:, None])[:, 0]
    best = torch.topk(known, min(max(logprobs[index] or 0 for index in asked), logits.shape[-1]))
    found: list[TokenLogprobs | None] = [None] * len(logprobs)
    for place, index in enumerate(asked):
        count = logprobs[index] or 0
        found[index] = TokenLogprobs(own[place], best.indices[place, :count], best.values[place, :count])
    return tuple(found)
