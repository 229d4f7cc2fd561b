"""Sampler pipeline: the steps of a sampler chain, applied to a batch of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from modules.generation.samplers.candidates import Candidates
from modules.generation.samplers.chain import NUMBERS
from modules.generation.samplers.grammar import allowed, keep_allowed
from modules.generation.samplers.mirostat import mirostat_filter, mirostat_floor
from modules.generation.samplers.penalties import add_at, penalise_repeated
from modules.generation.samplers.sequence_sampler import SequenceSampler
from modules.generation.samplers.temperature import apply_temperature, dynamic_temperature, smooth_quadratically
from modules.generation.samplers.truncation import (
    cut_epsilon,
    cut_eta,
    keep_min_p,
    keep_tail_free,
    keep_top_a,
    keep_top_k,
    keep_top_n_sigma,
    keep_top_p,
    keep_typical,
    lowest_of_top_p,
)
from modules.generation.samplers.xtc import exclude_top_choices

_PLACES = {name: place for place, name in enumerate(NUMBERS)}
CUTOFF_UNIT = 1e-4


@dataclass(frozen=True)
class Batch:
    """Rows that go the same way, at one step. `batch["min_p"]` is that parameter of every row: [rows, 1] float32.

    width: of the logits.
    """

    rows: Sequence[SequenceSampler]
    width: int
    device: torch.device

    @cached_property
    def _numbers(self) -> Tensor:
        return on_device(np.stack([row.numbers for row in self.rows], axis=1)[:, :, None], self.device)

    def __getitem__(self, name: str) -> Tensor:
        return self._numbers[_PLACES[name]]

    def draws(self, stream: int) -> Tensor:
        """One random number for each row, [rows, 1] float64."""
        return on_device(np.array([[row.draw(stream)] for row in self.rows]), self.device)

    def places(self, ids: Iterable[np.ndarray]) -> Tensor:
        """Where the tokens `ids` of each row are in the flattened logits of all, [n] int64."""
        return on_device(np.concatenate([part + index * self.width for index, part in enumerate(ids)]), self.device)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for; on the CPU the same memory."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def run(name: str, candidates: Candidates, batch: Batch) -> Candidates:
    """One step on the path of all rows of `batch`."""
    return _STEPS[name](candidates, batch)


# --- by token id


def _bias_and_bans(candidates: Candidates, batch: Batch) -> Candidates:
    return _with_added(candidates, batch, [row.bias_and_bans() for row in batch.rows])


def _grammar(candidates: Candidates, batch: Batch) -> Candidates:
    constraints = [row.constraint for row in batch.rows if row.constraint is not None]
    return Candidates(keep_allowed(candidates.logits, on_device(allowed(constraints), batch.device)))


def _penalties(candidates: Candidates, batch: Batch) -> Candidates:
    logits = candidates.by_id(batch.width).logits
    for ids, factors in (
        ([row.prompt_tokens() for row in batch.rows], [1 / row.params.encoder_repetition_penalty for row in batch.rows]),
        ([row.repeated_tokens() for row in batch.rows], [row.params.repetition_penalty for row in batch.rows]),
    ):
        if any(len(part) for part in ids):
            each = np.repeat(np.array(factors, np.float32), [len(part) for part in ids])
            logits = penalise_repeated(logits, batch.places(ids), on_device(each, batch.device))
    return _with_added(Candidates(logits), batch, [row.overused_tokens() for row in batch.rows])


def _dry(candidates: Candidates, batch: Batch) -> Candidates:
    return _with_added(candidates, batch, [row.repeating_tokens() for row in batch.rows])


def _with_added(candidates: Candidates, batch: Batch, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Candidates:
    """Each row's (ids, amounts) added to its logits."""
    if not any(len(ids) for ids, _ in parts):
        return candidates
    places = batch.places([ids for ids, _ in parts])
    amounts = on_device(np.concatenate([amounts for _, amounts in parts]), batch.device)
    return Candidates(add_at(candidates.by_id(batch.width).logits, places, amounts))


# --- by score, in any order


def _any_order(*names: str, by: Callable[..., Tensor]) -> Callable[[Candidates, Batch], Candidates]:
    """A step that computes new logits from the old and the parameters `names`, and keeps their order."""

    def step(candidates: Candidates, batch: Batch) -> Candidates:
        return candidates.with_logits(by(candidates.logits, *(batch[name] for name in names)))

    return step


def _dynamic_temperature(logits: Tensor, low: Tensor, high: Tensor, exponent: Tensor) -> Tensor:
    return apply_temperature(logits, dynamic_temperature(logits, low, high, exponent))


def _quadratic(candidates: Candidates, batch: Batch) -> Candidates:
    curve = batch["smoothing_curve"]
    logits = smooth_quadratically(candidates.logits, batch["smoothing_factor"], curve)
    in_order = all(row.params.smoothing_curve <= 3 for row in batch.rows)
    return candidates.with_logits(logits, is_sorted=candidates.is_sorted and in_order)


def _epsilon(logits: Tensor, cutoff: Tensor) -> Tensor:
    return cut_epsilon(logits, cutoff * CUTOFF_UNIT)


def _eta(logits: Tensor, cutoff: Tensor) -> Tensor:
    return cut_eta(logits, cutoff * CUTOFF_UNIT)


# --- best first


def _top_k(candidates: Candidates, batch: Batch) -> Candidates:
    widest = max(row.params.top_k for row in batch.rows)
    best = candidates.sorted(at_most=widest)
    return best.with_logits(keep_top_k(best.logits, batch["top_k"])).trimmed()


def _top_p(candidates: Candidates, batch: Batch) -> Candidates:
    total = candidates.logits.logsumexp(-1, keepdim=True)
    best = candidates.sorted(floor=lowest_of_top_p(total, batch["top_p"], batch.width))
    return best.with_logits(keep_top_p(best.logits, batch["top_p"], total)).trimmed()


def _tail_free(candidates: Candidates, batch: Batch) -> Candidates:
    best = candidates.sorted()
    return best.with_logits(keep_tail_free(best.logits, batch["tfs"])).trimmed()


def _mirostat(candidates: Candidates, batch: Batch) -> Candidates:
    mu = torch.stack([row.mu for row in batch.rows if row.mu is not None])[:, None]
    total = candidates.logits.logsumexp(-1, keepdim=True)
    best = candidates.sorted(floor=mirostat_floor(candidates.logits, mu, total))
    return best.with_logits(mirostat_filter(best.logits, mu, total)).trimmed()


def _xtc(candidates: Candidates, batch: Batch) -> Candidates:
    best = candidates.sorted()
    assert best.ids is not None
    ends = on_device(batch.rows[0].vocabulary.ends, batch.device)
    excluding = batch.draws(1) < batch["xtc_probability"]
    return best.with_logits(exclude_top_choices(best.logits, batch["xtc_threshold"], excluding, torch.isin(best.ids, ends)))


Step = Callable[[Candidates, Batch], Candidates]
"""What a sampler does to rows that all have it in their chain."""

_STEPS: dict[str, Step] = {
    "bias_and_bans": _bias_and_bans,
    "grammar": _grammar,
    "penalties": _penalties,
    "dry": _dry,
    "quadratic": _quadratic,
    "temperature": _any_order("temperature", by=apply_temperature),
    "dynamic_temperature": _any_order("dynatemp_low", "dynatemp_high", "dynatemp_exponent", by=_dynamic_temperature),
    "top_n_sigma": _any_order("top_n_sigma", by=keep_top_n_sigma),
    "top_k": _top_k,
    "top_p": _top_p,
    "typical_p": _any_order("typical_p", by=keep_typical),
    "epsilon_cutoff": _any_order("epsilon_cutoff", by=_epsilon),
    "eta_cutoff": _any_order("eta_cutoff", by=_eta),
    "tfs": _tail_free,
    "top_a": _any_order("top_a", by=keep_top_a),
    "min_p": _any_order("min_p", by=keep_min_p),
    "mirostat": _mirostat,
    "xtc": _xtc,
}
