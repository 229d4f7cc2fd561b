"""Sampler chain: which samplers a request needs, in the order in which they act, and the numbers that they compute with."""

from __future__ import annotations

import numpy as np

from modules.generation.sampling import SamplingParams

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
BESIDE_GREED = ("penalties", "dry")
BESIDE_MIROSTAT = ("penalties", "dry", "quadratic", "temperature", "mirostat")


def numbers(params: SamplingParams) -> np.ndarray:
    """The parameters that are computed with on the device, in the order of NUMBERS: float32."""
    return np.array([getattr(params, name) for name in NUMBERS], dtype=np.float32)


def sampler_chain(params: SamplingParams) -> tuple[str, ...]:
    """The names of the steps that change something for `params`; a greedy request has only what can change the best token."""
    active = params.active()
    order = [name for name in params.sampler_order if name in active]
    if params.temperature_last and "temperature" in order:
        order = [*(name for name in order if name != "temperature"), "temperature"]
    if params.greedy:
        order = [name for name in order if name in BESIDE_GREED]
    elif "mirostat" in order:
        order = [name for name in order if name in BESIDE_MIROSTAT]
    limited = params.logit_bias or params.banned_tokens or params.banned_strings or params.ban_eos or params.min_tokens
    first = ["bias_and_bans"] * bool(limited) + ["grammar"] * bool(params.grammar or params.regex or params.json_schema)
    return (
        *first,
        *("dynamic_temperature" if params.dynamic_temperature and name == "temperature" else name for name in order),
    )
