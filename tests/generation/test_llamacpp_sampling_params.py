"""SamplingParams in llama.cpp's words."""

from __future__ import annotations

import pytest

from modules.generation.llamacpp_sampling_params import NAMES, SUPPORTED, as_fields
from modules.generation.samplers.chain import sampler_chain
from modules.generation.sampling import SamplingParams


def fields(**values):
    return as_fields(SamplingParams(**values), 4096)


def test_neutral_values_switch_llama_cpps_own_defaults_off() -> None:
    neutral = fields()
    assert neutral["samplers"] == ["temperature"]
    assert (neutral["top_k"], neutral["top_p"], neutral["min_p"], neutral["temperature"]) == (0, 1.0, 0.0, 1.0)
    assert neutral["repeat_penalty"] == 1.0 and neutral["top_n_sigma"] == -1.0


def test_only_filters_that_do_something_run_in_the_order_asked_for() -> None:
    assert fields(top_k=40, min_p=0.1)["samplers"] == ["temperature", "top_k", "min_p"]
    assert fields(top_k=40, min_p=0.1, temperature_last=True)["samplers"] == ["top_k", "min_p", "temperature"]
    order = ("min_p", "temperature", "top_k")
    assert fields(top_k=40, min_p=0.1, top_p=0.9, sampler_order=order)["samplers"] == ["min_p", "temperature", "top_k"]


def test_whether_a_sampler_is_active_is_the_same_question_for_both_engines() -> None:
    values = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.5,
        "top_n_sigma": 1,
        "xtc_probability": 0.5,
    }
    assert SamplingParams().active() == () and sampler_chain(SamplingParams()) == ()
    for name, value in values.items():
        params = SamplingParams.read({name: value})
        (active,) = params.active()
        assert sampler_chain(params) == (active,)
        assert set(fields(**{name: value})["samplers"]) == {NAMES[active], "temperature"}
    # Without a filter that llama.cpp has, temperature stays: it must not take its own defaults.
    assert fields(tfs=0.5, sampler_order=("tfs",))["samplers"] == ["temperature"]


def test_a_temperature_that_is_not_in_the_order_is_not_applied() -> None:
    without = fields(temperature=0.3, sampler_order=("top_k",))
    assert (without["samplers"], without["temperature"]) == (["temperature"], 1.0)


@pytest.mark.parametrize("greedy", [{"do_sample": False}, {"temperature": 0}])
def test_greedy_takes_the_likeliest_after_penalties(greedy) -> None:
    made = fields(**greedy, top_k=5, xtc_probability=1, repetition_penalty=1.2, mirostat_mode=2, dynamic_temperature=True)
    assert made["samplers"] == ["penalties", "temperature"]
    assert (made["temperature"], made["mirostat"], made["dynatemp_range"]) == (0.0, 0, 0.0)


def test_dynamic_temperature_is_a_middle_and_a_range() -> None:
    made = fields(dynamic_temperature=True, dynatemp_low=0.5, dynatemp_high=1.5, dynatemp_exponent=2)
    assert (made["temperature"], made["dynatemp_range"], made["dynatemp_exponent"]) == (1.0, 0.5, 2)


def test_banned_tokens_are_never_and_biases_are_added() -> None:
    assert fields(logit_bias={"7": 3.5}, banned_tokens=(9,))["logit_bias"] == [[7, 3.5], [9, False]]


def test_penalties_look_back_over_everything_unless_told_otherwise() -> None:
    assert fields()["repeat_last_n"] == 4096
    assert fields(repetition_penalty_range=64)["repeat_last_n"] == 64
    assert fields(repetition_penalty_range=99999)["dry_penalty_last_n"] == 4096


def test_seeds_keep_their_own_and_none_means_draw() -> None:
    assert fields(seed=7)["seed"] == 7
    assert fields()["seed"] == -1
    assert 0 <= fields(seed=2**63 - 1)["seed"] < 0xFFFFFFFF


def test_supported_settings_exist() -> None:
    assert set(SamplingParams.model_fields) >= SUPPORTED
