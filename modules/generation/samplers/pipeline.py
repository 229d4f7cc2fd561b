"""The steps from a model's scores to those a token is drawn from: which ones a request needs, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from modules.generation.samplers.candidates import Candidates
from modules.generation.samplers.grammar import allowed, keep_allowed
from modules.generation.samplers.mirostat import keep_unsurprising, lowest_unsurprising
from modules.generation.samplers.nucleus import (
    keep_min_p,
    keep_top_a,
    keep_top_k,
    keep_top_n_sigma,
    keep_top_p,
    lowest_of_top_p,
)
from modules.generation.samplers.penalties import add_at, penalise_repeated
from modules.generation.samplers.tails import cut_epsilon, cut_eta, keep_tail_free, keep_typical
from modules.generation.samplers.temperature import apply_temperature, dynamic_temperature, smooth_quadratically
from modules.generation.samplers.xtc import exclude_top_choices
from modules.generation.sampling import SamplingParams

if TYPE_CHECKING:
    from modules.generation.samplers.sequence_sampler import RowSampler

NUMBERS = (
    "temperature",
    "dynatemp_low",
    "dynatemp_high",
    "dynatemp_exponent",
    "smoothing_factor",
    "smoothing_curve",
    "top_p",
    "top_k",
    "min_p",
    "top_n_sigma",
    "typical_p",
    "top_a",
    "tfs",
    "epsilon_cutoff",
    "eta_cutoff",
    "xtc_probability",
    "xtc_threshold",
    "mirostat_tau",
    "mirostat_eta",
)
_PLACES = {name: place for place, name in enumerate(NUMBERS)}
CUTOFF_UNIT = 1e-4
BESIDE_GREED = ("penalties", "dry")
BESIDE_MIROSTAT = ("penalties", "dry", "quadratic", "temperature", "mirostat")


def numbers(params: SamplingParams) -> np.ndarray:
    """The parameters that are computed with on the device, in the order of NUMBERS: float32."""
    return np.array([getattr(params, name) for name in NUMBERS], dtype=np.float32)


@dataclass(frozen=True)
class Batch:
    """Rows that go the same way, at one step. `batch["min_p"]` is that parameter of every row: [rows, 1] float32.

    width: of the logits.
    """

    rows: Sequence[RowSampler]
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
        """Where the tokens `ids` of each row are in the flattened scores of all, [n] int64."""
        return on_device(np.concatenate([part + index * self.width for index, part in enumerate(ids)]), self.device)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for; on the CPU the same memory."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def path(params: SamplingParams) -> tuple[str, ...]:
    """Names of the steps that change something for `params`, in order; a greedy request has only what can change the best token."""
    order: list[str] = list(params.sampler_order)
    if params.temperature_last and "temperature" in order:
        order = [name for name in order if name != "temperature"] + ["temperature"]
    if params.greedy:
        order = [name for name in order if name in BESIDE_GREED]
    elif params.mirostat_mode == 2 and "mirostat" in order:
        order = [name for name in order if name in BESIDE_MIROSTAT]
    if params.dynamic_temperature:
        order = ["dynamic_temperature" if name == "temperature" else name for name in order]
    return tuple(name for name in ("limits", "grammar", *order) if _STEPS[name].needed(params))


def run(name: str, candidates: Candidates, batch: Batch) -> Candidates:
    """One step on the path of all rows of `batch`."""
    return _STEPS[name].run(candidates, batch)


@dataclass(frozen=True)
class Step:
    """needed: whether the step does anything for a request; run: what it does to rows that all need it."""

    needed: Callable[[SamplingParams], bool]
    run: Callable[[Candidates, Batch], Candidates]


# --- by token id


def _limits(candidates: Candidates, batch: Batch) -> Candidates:
    return _with_added(candidates, batch, [row.limits() for row in batch.rows])


def _grammar(candidates: Candidates, batch: Batch) -> Candidates:
    constraints = [row.constraint for row in batch.rows if row.constraint is not None]
    return Candidates(keep_allowed(candidates.scores, on_device(allowed(constraints), batch.device)))


def _penalties(candidates: Candidates, batch: Batch) -> Candidates:
    scores = candidates.by_id(batch.width).scores
    for ids, factors in (
        ([row.prompt_tokens() for row in batch.rows], [1 / row.params.encoder_repetition_penalty for row in batch.rows]),
        ([row.repeated_tokens() for row in batch.rows], [row.params.repetition_penalty for row in batch.rows]),
    ):
        if any(len(part) for part in ids):
            each = np.repeat(np.array(factors, np.float32), [len(part) for part in ids])
            scores = penalise_repeated(scores, batch.places(ids), on_device(each, batch.device))
    return _with_added(Candidates(scores), batch, [row.overused_tokens() for row in batch.rows])


def _dry(candidates: Candidates, batch: Batch) -> Candidates:
    return _with_added(candidates, batch, [row.repeating_tokens() for row in batch.rows])


def _with_added(candidates: Candidates, batch: Batch, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Candidates:
    """Each row's (ids, amounts) added to its scores."""
    if not any(len(ids) for ids, _ in parts):
        return candidates
    places = batch.places([ids for ids, _ in parts])
    amounts = on_device(np.concatenate([amounts for _, amounts in parts]), batch.device)
    return Candidates(add_at(candidates.by_id(batch.width).scores, places, amounts))


# --- by score, in any order


def _any_order(*names: str, by: Callable[..., Tensor]) -> Callable[[Candidates, Batch], Candidates]:
    """A step that computes new scores from the old and the parameters `names`, and keeps their order."""

    def step(candidates: Candidates, batch: Batch) -> Candidates:
        return candidates.with_scores(by(candidates.scores, *(batch[name] for name in names)))

    return step


def _dynamic_temperature(scores: Tensor, low: Tensor, high: Tensor, exponent: Tensor) -> Tensor:
    return apply_temperature(scores, dynamic_temperature(scores, low, high, exponent))


def _quadratic(candidates: Candidates, batch: Batch) -> Candidates:
    curve = batch["smoothing_curve"]
    scores = smooth_quadratically(candidates.scores, batch["smoothing_factor"], curve)
    in_order = all(row.params.smoothing_curve <= 3 for row in batch.rows)
    return candidates.with_scores(scores, is_sorted=candidates.is_sorted and in_order)


def _epsilon(scores: Tensor, cutoff: Tensor) -> Tensor:
    return cut_epsilon(scores, cutoff * CUTOFF_UNIT)


def _eta(scores: Tensor, cutoff: Tensor) -> Tensor:
    return cut_eta(scores, cutoff * CUTOFF_UNIT)


# --- best first


def _top_k(candidates: Candidates, batch: Batch) -> Candidates:
    widest = max(row.params.top_k for row in batch.rows)
    best = candidates.sorted(at_most=widest)
    return best.with_scores(keep_top_k(best.scores, batch["top_k"])).trimmed()


def _top_p(candidates: Candidates, batch: Batch) -> Candidates:
    total = candidates.scores.logsumexp(-1, keepdim=True)
    best = candidates.sorted(floor=lowest_of_top_p(total, batch["top_p"], batch.width))
    return best.with_scores(keep_top_p(best.scores, batch["top_p"], total)).trimmed()


def _tail_free(candidates: Candidates, batch: Batch) -> Candidates:
    best = candidates.sorted()
    return best.with_scores(keep_tail_free(best.scores, batch["tfs"])).trimmed()


def _mirostat(candidates: Candidates, batch: Batch) -> Candidates:
    limits = torch.stack([row.surprise_limit for row in batch.rows if row.surprise_limit is not None])[:, None]
    total = candidates.scores.logsumexp(-1, keepdim=True)
    best = candidates.sorted(floor=lowest_unsurprising(candidates.scores, limits, total))
    return best.with_scores(keep_unsurprising(best.scores, limits, total)).trimmed()


def _xtc(candidates: Candidates, batch: Batch) -> Candidates:
    best = candidates.sorted()
    assert best.ids is not None
    ends = on_device(batch.rows[0].vocabulary.ends, batch.device)
    excluding = batch.draws(1) < batch["xtc_probability"]
    return best.with_scores(exclude_top_choices(best.scores, batch["xtc_threshold"], excluding, torch.isin(best.ids, ends)))


def _needs_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1
        or params.encoder_repetition_penalty != 1
        or params.frequency_penalty != 0
        or params.presence_penalty != 0
        or params.no_repeat_ngram_size > 0
    )


_STEPS: dict[str, Step] = {
    "limits": Step(lambda p: bool(p.logit_bias or p.banned_tokens or p.banned_strings or p.ban_eos or p.min_tokens), _limits),
    "grammar": Step(lambda p: bool(p.grammar or p.regex or p.json_schema), _grammar),
    "penalties": Step(_needs_penalties, _penalties),
    "dry": Step(lambda p: p.dry_multiplier > 0, _dry),
    "quadratic": Step(lambda p: p.smoothing_factor > 0, _quadratic),
    "temperature": Step(lambda p: p.temperature != 1, _any_order("temperature", by=apply_temperature)),
    "dynamic_temperature": Step(
        lambda p: not p.dynatemp_low == p.dynatemp_high == 1,
        _any_order("dynatemp_low", "dynatemp_high", "dynatemp_exponent", by=_dynamic_temperature),
    ),
    "top_n_sigma": Step(lambda p: p.top_n_sigma > 0, _any_order("top_n_sigma", by=keep_top_n_sigma)),
    "top_k": Step(lambda p: p.top_k > 0, _top_k),
    "top_p": Step(lambda p: p.top_p < 1, _top_p),
    "typical_p": Step(lambda p: p.typical_p < 1, _any_order("typical_p", by=keep_typical)),
    "epsilon_cutoff": Step(lambda p: p.epsilon_cutoff > 0, _any_order("epsilon_cutoff", by=_epsilon)),
    "eta_cutoff": Step(lambda p: p.eta_cutoff > 0, _any_order("eta_cutoff", by=_eta)),
    "tfs": Step(lambda p: p.tfs < 1, _tail_free),
    "top_a": Step(lambda p: p.top_a > 0, _any_order("top_a", by=keep_top_a)),
    "min_p": Step(lambda p: p.min_p > 0, _any_order("min_p", by=keep_min_p)),
    "mirostat": Step(lambda p: p.mirostat_mode == 2, _mirostat),
    "xtc": Step(lambda p: p.xtc_probability > 0, _xtc),
}
