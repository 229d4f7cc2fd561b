"""The choice of a token: reproducible, right in its distribution, the same alone and in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MinNewTokensLengthLogitsProcessor
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from modules.errors import UserError
from modules.generation.samplers.batch_sampler import SequenceSampler, choose, guide, remaining
from modules.generation.samplers.candidates import NEG_INF
from modules.generation.samplers.vocabulary import Vocabulary
from modules.generation.sampling import DEFAULT_ORDER, SamplingParams
from modules.generation.structured_output.process import Trials
from tests.generation.samplers.conftest import MakeRow, sampler_of

PROMPT = list(b"to be, or not to be: that is the question. to be")
EFFECTIVE: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.5},
    "temperature_last": {"temperature": 1.5, "temperature_last": True, "top_p": 0.5},
    "dynamic_temperature": {"dynamic_temperature": True, "dynatemp_low": 0.5, "dynatemp_high": 2.0, "dynatemp_exponent": 0.7},
    "smoothing": {"smoothing_factor": 0.3, "smoothing_curve": 2.0},
    "steep smoothing": {"smoothing_factor": 0.3, "smoothing_curve": 5.0, "top_k": 9},
    "top_p": {"top_p": 0.7},
    "top_k": {"top_k": 7},
    "min_p": {"min_p": 0.1},
    "top_n_sigma": {"top_n_sigma": 1.0},
    "typical_p": {"typical_p": 0.6},
    "top_a": {"top_a": 0.5},
    "tfs": {"tfs": 0.8},
    "epsilon_cutoff": {"epsilon_cutoff": 8.0},
    "eta_cutoff": {"eta_cutoff": 9.0},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.02},
    "mirostat": {"mirostat_mode": 2, "mirostat_tau": 1.5},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_penalty_range": {"repetition_penalty": 1.3, "repetition_penalty_range": 3},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.3},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "dry": {"dry_multiplier": 1.0, "dry_allowed_length": 2},
    "logit_bias": {"logit_bias": {"65": 9.0, "66": -100}},
    "banned_tokens": {"banned_tokens": (65, 66)},
    "banned_strings": {"banned_strings": ("A", "xy")},
    "ban_eos": {"ban_eos": True},
    "min_tokens": {"min_tokens": 30},
    "sampler_order": {"sampler_order": ("min_p", "temperature"), "min_p": 0.1, "temperature": 2.0, "top_k": 3},
    "penalties last": {"sampler_order": tuple(reversed(DEFAULT_ORDER)), "top_k": 20, "repetition_penalty": 1.3},
    "json_schema": {"json_schema": "{}"},
    "contrastive search": {"do_sample": False, "penalty_alpha": 0.6, "top_k": 4},
    "all": {
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 60,
        "min_p": 0.01,
        "typical_p": 0.95,
        "tfs": 0.98,
        "repetition_penalty": 1.1,
        "dry_multiplier": 0.8,
        "xtc_probability": 0.5,
        "frequency_penalty": 0.2,
    },
}
IDLE: dict[str, dict[str, Any]] = {
    **{name: {name: field.get_default(call_default_factory=True)} for name, field in SamplingParams.model_fields.items()},
    "temperature_last": {"temperature_last": True},
    "dynamic temperature between 1 and 1": {"dynamic_temperature": True, "dynatemp_exponent": 3.0},
    "bounds without dynamic temperature": {"dynatemp_low": 0.2, "dynatemp_high": 3.0},
    "a curve without smoothing": {"smoothing_curve": 3.0},
    "a threshold without XTC": {"xtc_threshold": 0.01},
    "a target without mirostat": {"mirostat_tau": 1.0, "mirostat_eta": 1.0},
    "DRY without strength": {"dry_base": 3.0, "dry_allowed_length": 1, "dry_sequence_breakers": ()},
    "contrastive search without greed": {"penalty_alpha": 0.6},
    "a range without penalties": {"repetition_penalty_range": 2},
    "another order": {"sampler_order": tuple(reversed(DEFAULT_ORDER))},
    "no order": {"sampler_order": (), "top_k": 1, "temperature": 0.1, "repetition_penalty": 2.0},
    "guidance, which the engine mixes": {"guidance_scale": 2.0, "negative_prompt": "no"},
    "what is not about scores": {"max_tokens": 3, "stop": ("x",), "seed": 5, "add_bos": False, "skip_special_tokens": False},
}


def scores(rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(rows, 260, generator=torch.Generator().manual_seed(seed)) * 2


def test_every_field_of_the_parameters_is_either_tried_or_idle() -> None:
    tried = {name for case in EFFECTIVE.values() for name in case} | {name for case in IDLE.values() for name in case}
    assert tried == set(SamplingParams.model_fields)


@pytest.mark.parametrize("name", IDLE)
def test_what_is_neutral_leaves_the_scores_bit_for_bit_as_they_are(name: str, row: MakeRow) -> None:
    logits = scores()
    assert torch.equal(remaining(logits, [row(PROMPT, **IDLE[name])]), logits)


@pytest.mark.parametrize("name", EFFECTIVE)
def test_every_sampler_changes_the_scores_and_leaves_something(name: str, row: MakeRow) -> None:
    logits = scores()
    before = logits.clone()
    sampler = row(PROMPT, seed=0, **EFFECTIVE[name])
    for token in PROMPT[:20]:
        if name != "json_schema":
            sampler.accept(token)
    got = remaining(logits, [sampler])
    assert not torch.equal(got, logits)
    assert (got > NEG_INF).any()
    assert not got.isnan().any()
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_chooses_the_same_alone_and_beside_all_others(dtype: torch.dtype, row: MakeRow) -> None:
    def samplers() -> list[SequenceSampler]:
        kinds = [{}, {"temperature": 0.0}, {"top_p": 0.9}, {"top_p": 0.5}, *EFFECTIVE.values()]
        return [row(PROMPT, seed=place, **kind) for place, kind in enumerate(kinds)]

    alone, together = samplers(), samplers()
    for step in range(12):
        logits = scores(len(alone), seed=step).to(dtype)
        single = [choose(logits[i : i + 1], [one], logprobs=[None]).tokens.item() for i, one in enumerate(alone)]
        joint = choose(logits, together, logprobs=[None] * len(together)).tokens.tolist()
        assert joint == single
        for sampler, other, token in zip(alone, together, joint, strict=True):
            sampler.accept(token)
            other.accept(token)


def test_tokens_come_as_often_as_their_probability_says(row: MakeRow) -> None:
    logits = torch.full((1, 260), NEG_INF)
    logits[0, [3, 70, 259]] = torch.tensor([0.5, 0.3, 0.2]).log()
    sampler, counts = row(seed=1), torch.zeros(260)
    for _ in range(5000):
        token = int(choose(logits, [sampler], logprobs=[None]).tokens)
        counts[token] += 1
        sampler.accept(token)
    expected = logits[0].exp() * 5000
    chosen = expected > 0
    assert counts[~chosen].sum() == 0
    assert ((counts - expected)[chosen].square() / expected[chosen]).sum() < 13.8  # chi-squared, 2 degrees: 1 in 1,000


def test_no_seed_draws_a_new_one_and_says_which(row: MakeRow) -> None:
    first, second = row(), row()
    assert first.seed != second.seed
    again = row(seed=first.seed)
    assert [first.draw(0), first.draw(1)] == [again.draw(0), again.draw(1)]
    assert first.draw(0) != first.draw(1)


def test_greedy_takes_the_best_whatever_the_filters(row: MakeRow) -> None:
    logits = scores()
    for kind in ({"temperature": 0.0}, {"do_sample": False, "temperature": 3.0}):
        sampler = row(xtc_probability=1.0, xtc_threshold=0.0, mirostat_mode=2, top_p=0.5, **kind)
        assert choose(logits, [sampler], logprobs=[None]).tokens.tolist() == [int(logits.argmax())]


def test_temperature_last_filters_the_untempered_scores(row: MakeRow) -> None:
    logits = scores()
    early = remaining(logits, [row(temperature=5.0, min_p=0.2)])
    late = remaining(logits, [row(temperature=5.0, min_p=0.2, temperature_last=True)])
    plain = remaining(logits, [row(min_p=0.2)])
    assert torch.equal(late > NEG_INF, plain > NEG_INF)
    assert (early > NEG_INF).sum() > (late > NEG_INF).sum()
    assert torch.allclose(late[late > NEG_INF], plain[plain > NEG_INF] / 5)


def test_mirostat_brings_the_surprise_to_its_target(row: MakeRow) -> None:
    sampler = row(mirostat_mode=2, mirostat_tau=2.0, mirostat_eta=0.1, seed=0)
    surprises = []
    for step in range(400):
        logits = scores(seed=step)
        left = remaining(logits, [sampler])
        token = int(choose(logits, [sampler], logprobs=[None]).tokens)
        surprises.append(-torch.log_softmax(left, -1)[0, token].item() / torch.log(torch.tensor(2.0)).item())
        sampler.accept(token)
    assert sum(surprises[100:]) / 300 == pytest.approx(2.0, abs=0.1)


def test_the_reply_cannot_end_before_min_tokens_just_as_in_transformers(row: MakeRow, vocabulary: Vocabulary) -> None:
    sampler = row(PROMPT, min_tokens=2)
    for length in range(4):
        ids: Any = torch.tensor([[*PROMPT, *[1] * length]])
        expected = MinNewTokensLengthLogitsProcessor(len(PROMPT), 2, [*vocabulary.eos], device="cpu")(ids, scores())
        assert torch.equal(remaining(scores(), [sampler]), expected)
        sampler.accept(1)


def test_a_banned_token_never_comes_and_an_unknown_one_is_refused(row: MakeRow) -> None:
    logits = scores()
    best = int(logits.argmax())
    assert choose(logits, [row(temperature=0, banned_tokens=(best,))], logprobs=[None]).tokens.item() != best
    with pytest.raises(UserError, match="no token 260"):
        row(banned_tokens=(260,))
    with pytest.raises(UserError, match="no token 999"):
        row(logit_bias={"999": 1})


def test_biases_are_added_to_the_scores(row: MakeRow) -> None:
    logits = scores()
    got = remaining(logits, [row(logit_bias={"5": 1.5, "9": -100})])
    expected = logits.clone()
    expected[0, 5] += 1.5
    expected[0, 9] -= 100
    assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", [{"temperature": 0.0}, {}, {"top_p": 0.9}])
@pytest.mark.parametrize("value", [NEG_INF, float("nan")])
def test_where_nothing_may_come_the_row_says_so_and_the_others_go_on(kind: dict[str, Any], value: float, row: MakeRow) -> None:
    logits = scores(2)
    logits[0] = value
    rows = [row(seed=1, **kind), row(seed=1, **kind)]
    tokens = choose(logits, rows, logprobs=[None, None]).tokens.tolist()
    assert tokens[0] == -1
    assert tokens[1] == choose(logits[1:], rows[1:], logprobs=[None]).tokens.item()
    with pytest.raises(UserError, match="No token can be chosen"):
        rows[0].accept(tokens[0])


def test_log_probabilities_are_of_the_model_itself_and_only_where_asked(row: MakeRow) -> None:
    logits = scores(3)
    rows = [row(seed=1, temperature=0.1, top_k=2, banned_tokens=(0, 1)) for _ in range(3)]
    choice = choose(logits, rows, logprobs=[None, 0, 4])
    expected = torch.log_softmax(logits, -1)
    none, own, best = choice.details
    assert none is None
    assert own is not None and best is not None
    assert own.logprob == expected[1, choice.tokens[1]]
    assert len(own.ids) == 0
    assert torch.equal(best.logprobs, expected[2].topk(4).values)
    assert torch.equal(best.ids, expected[2].topk(4).indices)


def test_guidance_is_mixed_as_transformers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, unwanted = scores(2, seed=1), scores(2, seed=2)
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.7, model=None)  # type: ignore[arg-type]
    monkeypatch.setattr(processor, "get_unconditional_logits", lambda ids: unwanted[:, None])
    expected = processor(torch.zeros(2, 1, dtype=torch.int64), wanted)  # type: ignore[arg-type]
    assert torch.allclose(guide(wanted, unwanted, torch.tensor([1.7, 1.7])), expected)
    assert torch.equal(guide(wanted, unwanted, torch.tensor([1.0, 1.7]))[0], wanted[0])


def test_logits_wider_than_the_tokenizer_work(tokenizer: Any, trials: Trials) -> None:
    wide = Vocabulary(tokenizer, size=320)
    logits = torch.randn(1, 320, generator=torch.Generator().manual_seed(0))
    for kind in EFFECTIVE.values():
        sampler = sampler_of(SamplingParams(**kind), PROMPT, wide, trials)
        assert remaining(logits, [sampler]).shape == (1, 320)


@pytest.mark.gpu
def test_on_cuda_nothing_waits_for_the_device(vocabulary: Vocabulary, trials: Trials) -> None:
    def samplers(device: str) -> list[SequenceSampler]:
        kinds = [{}, {"temperature": 0.0}, {"top_p": 0.9}, *EFFECTIVE.values()]
        return [
            sampler_of(SamplingParams(seed=place, **kind), PROMPT, vocabulary, trials, device=device)
            for place, kind in enumerate(kinds)
        ]

    on_host, on_device = samplers("cpu"), samplers("cuda")
    logits = scores(len(on_host))
    there = logits.cuda()
    asked = [2] * len(on_host)
    choose(there, on_device, logprobs=asked)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tokens = choose(there, on_device, logprobs=asked).tokens
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tokens.shape == (len(on_host),)
    fresh = choose(there, samplers("cuda"), logprobs=asked).tokens.tolist()
    assert fresh == choose(logits, on_host, logprobs=asked).tokens.tolist()
