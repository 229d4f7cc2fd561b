"""Every filter and reshaping of scores: nothing at its neutral value, transformers' own mathematics at the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from modules.generation.samplers import mirostat, temperature, truncation, xtc
from modules.generation.samplers.candidates import NEG_INF, Candidates

NEUTRAL = {
    "top_k": (truncation.keep_top_k, 0),
    "top_p": (truncation.keep_top_p, 1),
    "min_p": (truncation.keep_min_p, 0),
    "top_a": (truncation.keep_top_a, 0),
    "top_n_sigma": (truncation.keep_top_n_sigma, 0),
    "typical_p": (truncation.keep_typical, 1),
    "tfs": (truncation.keep_tail_free, 1),
    "epsilon": (truncation.cut_epsilon, 0),
    "eta": (truncation.cut_eta, 0),
    "temperature": (temperature.apply_temperature, 1),
}
AGAINST = {
    "top_k": (truncation.keep_top_k, TopKLogitsWarper, [1, 3, 40, 1000]),
    "top_p": (truncation.keep_top_p, TopPLogitsWarper, [0.01, 0.5, 0.9, 0.999]),
    "min_p": (truncation.keep_min_p, MinPLogitsWarper, [0.01, 0.1, 0.9]),
    "typical_p": (truncation.keep_typical, TypicalLogitsWarper, [0.05, 0.5, 0.95]),
    "epsilon": (truncation.cut_epsilon, EpsilonLogitsWarper, [3e-4, 9e-3, 0.5]),
    "eta": (truncation.cut_eta, EtaLogitsWarper, [3e-4, 2e-3, 0.5]),
    "temperature": (temperature.apply_temperature, TemperatureLogitsWarper, [0.3, 1.7]),
}
MASKED = [0, 5, 17]


@pytest.fixture(params=["flat", "peaked", "partly masked"])
def scores(request: pytest.FixtureRequest) -> Tensor:
    """Four rows of 1,000 scores, best first."""
    drawn = torch.randn(4, 1000, generator=torch.Generator().manual_seed(7)) * (5 if request.param == "peaked" else 1)
    if request.param == "partly masked":
        drawn[:, MASKED] = NEG_INF
    return drawn.sort(descending=True).values


def each_row(value: float, scores: Tensor) -> Tensor:
    return torch.full((len(scores), 1), value, dtype=torch.float32)


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_value_leaves_the_scores_bit_for_bit_as_they_are(name: str, scores: Tensor) -> None:
    apply, neutral = NEUTRAL[name]
    assert torch.equal(apply(scores, each_row(neutral, scores)), scores)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, case in AGAINST.items() for value in case[2]])
def test_transformers_does_the_same(name: str, value: float, scores: Tensor) -> None:
    apply, warper, _ = AGAINST[name]
    expected = warper(value)(torch.zeros(4, 1, dtype=torch.int64), scores.clone())
    got = apply(scores, each_row(value, scores))
    assert torch.allclose(got, expected)


@pytest.mark.parametrize("name", NEUTRAL)
def test_rows_with_different_values_get_what_they_would_get_alone(name: str, scores: Tensor) -> None:
    apply, neutral = NEUTRAL[name]
    values = torch.tensor([[neutral], [0.5], [0.9], [2.0 if name == "top_k" else 0.1]], dtype=torch.float32)
    together = apply(scores, values)
    for index in range(4):
        assert torch.equal(together[index], apply(scores[index : index + 1], values[index : index + 1])[0])


@pytest.mark.parametrize("name", set(NEUTRAL) - {"temperature"})
def test_the_strictest_value_still_leaves_the_best_token(name: str, scores: Tensor) -> None:
    apply, neutral = NEUTRAL[name]
    strict = {"top_k": 1, "top_p": 0, "tfs": 0, "typical_p": 0, "top_n_sigma": 1e-6}.get(name, 1 - neutral)
    got = apply(scores, each_row(strict, scores))
    assert (got > NEG_INF).any(-1).all()
    if name != "typical_p":
        assert torch.equal(got[:, 0], scores[:, 0])


def test_top_a_cuts_at_a_share_of_the_squared_best_probability() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = truncation.keep_top_a(scores, torch.tensor([[0.5]])) > NEG_INF
    assert kept.tolist() == [[True, True, True, False]]  # 0.5 × 0.5² = 0.125


def test_top_n_sigma_counts_only_tokens_that_are_in() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, NEG_INF, NEG_INF]])
    kept = truncation.keep_top_n_sigma(scores, torch.tensor([[1.0]])) > NEG_INF
    assert kept.tolist() == [[True, True, False, False, False, False]]  # σ of 4, 3, 2, 1 is 1.118


def test_tail_free_cuts_where_the_curvature_is_spent() -> None:
    scores = torch.tensor([[0.6, 0.3, 0.06, 0.03, 0.01]]).log()
    # |second differences| of 0.6 0.3 0.06 0.03 0.01 0 0: 0.06 0.21 0.01 0.01 0.01, their sum 0.30: 0.2, 0.9, 0.93, …
    kept = truncation.keep_tail_free(scores, torch.tensor([[0.5]])) > NEG_INF
    assert kept.tolist() == [[True, True, False, False, False]]


def test_tail_free_does_not_care_how_many_masked_tokens_follow(scores: Tensor) -> None:
    some = scores[:, :50]
    padded = torch.nn.functional.pad(some, (0, 30), value=NEG_INF)
    strict = each_row(0.8, scores)
    assert torch.equal(truncation.keep_tail_free(some, strict), truncation.keep_tail_free(padded, strict)[:, :50])


def test_dynamic_temperature_goes_from_low_to_high_with_the_uncertainty() -> None:
    certain, even = torch.tensor([[50.0, 0.0, 0.0]]), torch.zeros(1, 3)
    low, high, one = torch.tensor([[0.5]]), torch.tensor([[2.0]]), torch.tensor([[1.0]])
    assert temperature.dynamic_temperature(certain, low, high, one).item() == pytest.approx(0.5)
    assert temperature.dynamic_temperature(even, low, high, one).item() == pytest.approx(2.0)
    half = torch.tensor([[0.0, 0.0, NEG_INF, -40.0]])  # entropy log 2 of at most log 3
    share = 2.0**0.5 * 0 + torch.tensor(2.0).log() / torch.tensor(3.0).log()
    expected = 0.5 + 1.5 * share.item() ** 2
    assert temperature.dynamic_temperature(half, low, high, torch.tensor([[2.0]])).item() == pytest.approx(expected)


def test_quadratic_smoothing_keeps_the_best_and_bends_the_rest() -> None:
    scores = torch.tensor([[3.0, 1.0, -1.0, NEG_INF]])
    plain = temperature.smooth_quadratically(scores, torch.tensor([[0.5]]), torch.tensor([[1.0]]))
    assert plain.tolist() == [[3.0, 1.0, -5.0, NEG_INF]]  # 3 - 0.5 · d²
    curved = temperature.smooth_quadratically(scores, torch.tensor([[0.5]]), torch.tensor([[2.0]]))
    assert curved.tolist() == [[3.0, 3 - 0.25 * 4 - 0.25 * 8, 3 - 0.25 * 16 - 0.25 * 64, NEG_INF]]
    off = temperature.smooth_quadratically(scores, torch.tensor([[0.0]]), torch.tensor([[2.0]]))
    assert torch.equal(off, scores)


def test_xtc_keeps_the_least_likely_of_the_likely_when_the_lot_says_so() -> None:
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]]).log()
    threshold, nothing = torch.tensor([[0.1]]), torch.zeros(1, 5, dtype=torch.bool)
    yes, no = torch.tensor([[True]]), torch.tensor([[False]])
    kept = xtc.exclude_top_choices(scores, threshold, yes, nothing) > NEG_INF
    assert kept.tolist() == [[False, False, True, True, True]]
    assert torch.equal(xtc.exclude_top_choices(scores, threshold, no, nothing), scores)
    end = torch.tensor([[False, True, False, False, False]])
    assert torch.equal(xtc.exclude_top_choices(scores, threshold, yes, end), scores)
    single = xtc.exclude_top_choices(scores, torch.tensor([[0.35]]), yes, nothing)
    assert torch.equal(single, scores)


def test_mirostat_drops_what_is_too_surprising() -> None:
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    kept = mirostat.mirostat_filter(scores, torch.tensor([[2.5]])) > NEG_INF
    assert kept.tolist() == [[True, True, False, False]]
    strict = mirostat.mirostat_filter(scores, torch.tensor([[-1.0]])) > NEG_INF
    assert strict.tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(
    ("name", "value"), [*(("top_p", p) for p in (0, 0.1, 0.9, 0.9999, 1)), ("mirostat", 2), ("mirostat", 8)]
)
def test_a_floor_before_sorting_changes_nothing(name: str, value: float, scores: Tensor) -> None:
    shuffled = Candidates(scores[:, torch.randperm(scores.shape[-1], generator=torch.Generator().manual_seed(1))])
    values, total = each_row(value, scores), scores.logsumexp(-1, keepdim=True)
    if name == "top_p":
        keep, floor = truncation.keep_top_p, truncation.lowest_of_top_p(total, values, scores.shape[-1])
    else:
        keep, floor = mirostat.mirostat_filter, mirostat.mirostat_floor(scores, values, total)
    kept = [part.with_logits(keep(part.logits, values, total)) for part in (shuffled.sorted(), shuffled.sorted(floor=floor))]
    assert torch.equal(*(part.by_id(scores.shape[-1]).logits for part in kept))
    if value < 0.99:
        assert kept[1].logits.shape[-1] < kept[0].logits.shape[-1]


def test_sorting_agrees_with_torch_and_keeps_equal_scores_in_order(scores: Tensor) -> None:
    rounded = scores[:, torch.randperm(scores.shape[-1], generator=torch.Generator().manual_seed(1))].round()
    best = Candidates(rounded).sorted()
    expected = rounded.sort(descending=True, stable=True)
    width = best.logits.shape[-1]
    assert torch.equal(best.logits, expected.values[:, :width])
    assert best.ids is not None
    assert torch.equal(best.ids, expected.indices[:, :width])
    assert (expected.values[:, width:] == NEG_INF).all()
    again = best.by_id(scores.shape[-1])
    assert torch.equal(again.logits, rounded)
