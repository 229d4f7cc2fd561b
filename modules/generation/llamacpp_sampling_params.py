"""SamplingParams in llama.cpp's words. Its own defaults are not neutral, so every value is sent."""

from __future__ import annotations

from typing import Any

from modules.generation.sampling import SamplingParams

NAMES = {
    "penalties": "penalties",
    "dry": "dry",
    "temperature": "temperature",
    "top_n_sigma": "top_n_sigma",
    "top_k": "top_k",
    "top_p": "top_p",
    "typical_p": "typ_p",
    "min_p": "min_p",
    "xtc": "xtc",
}
"""Our samplers and llama.cpp's. Mirostat is not part of its order: it replaces the filters."""

SUPPORTED = frozenset(
    [
        "max_tokens",
        "truncation_length",
        "min_tokens",
        "stop",
        "ban_eos",
        "do_sample",
        "temperature",
        "temperature_last",
        "dynamic_temperature",
        "dynatemp_low",
        "dynatemp_high",
        "dynatemp_exponent",
        "top_p",
        "top_k",
        "min_p",
        "top_n_sigma",
        "typical_p",
        "xtc_probability",
        "xtc_threshold",
        "mirostat_mode",
        "mirostat_tau",
        "mirostat_eta",
        "repetition_penalty",
        "repetition_penalty_range",
        "presence_penalty",
        "frequency_penalty",
        "dry_multiplier",
        "dry_base",
        "dry_allowed_length",
        "dry_sequence_breakers",
        "logit_bias",
        "banned_tokens",
        "sampler_order",
        "seed",
        "grammar",
        "regex",
        "json_schema",
        "add_bos",
        "skip_special_tokens",
        "max_tokens_per_second",
    ]
)


def as_fields(sampling: SamplingParams, context_length: int) -> dict[str, Any]:
    """The fields of a completion request that decide how tokens are chosen; not its length, stop texts and form."""
    look_back = min(sampling.repetition_penalty_range or context_length, context_length)
    fields: dict[str, Any] = {
        "samplers": _order(sampling),
        "temperature": _temperature(sampling),
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "top_n_sigma": sampling.top_n_sigma or -1.0,
        "typical_p": sampling.typical_p,
        "xtc_probability": sampling.xtc_probability,
        "xtc_threshold": sampling.xtc_threshold,
        "mirostat": 0 if sampling.greedy else sampling.mirostat_mode,
        "mirostat_tau": sampling.mirostat_tau,
        "mirostat_eta": sampling.mirostat_eta,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": look_back,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "dry_multiplier": sampling.dry_multiplier,
        "dry_base": sampling.dry_base,
        "dry_allowed_length": sampling.dry_allowed_length,
        "dry_penalty_last_n": look_back,
        "dry_sequence_breakers": list(sampling.dry_sequence_breakers) or ["none"],
        "logit_bias": _biases(sampling),
        # llama.cpp's seeds have 32 bits, of which the last value means "draw one".
        "seed": sampling.seed % 0xFFFFFFFF if sampling.seed >= 0 else -1,
    }
    if sampling.dynamic_temperature and not sampling.greedy:
        low, high = sampling.dynatemp_low, sampling.dynatemp_high
        fields["temperature"] = (low + high) / 2
        fields["dynatemp_range"] = abs(high - low) / 2
        fields["dynatemp_exponent"] = sampling.dynatemp_exponent
    return fields


def _temperature(sampling: SamplingParams) -> float:
    if sampling.greedy:
        return 0.0
    named = sampling.temperature_last or "temperature" in sampling.sampler_order
    return sampling.temperature if named else 1.0


def _order(sampling: SamplingParams) -> list[str]:
    """The filters that do something, in the order asked for. Each one that is left out is time saved at every token."""
    active = sampling.active()
    order = [name for name in sampling.sampler_order if name in NAMES and (name in active or name == "temperature")]
    if sampling.greedy or sampling.temperature_last or not order:
        # The likeliest token stays the likeliest, whatever the filters drop.
        kept = [name for name in order if name != "temperature" and (not sampling.greedy or name in ("penalties", "dry"))]
        order = [*kept, "temperature"]
    return [NAMES[name] for name in order]


def _biases(sampling: SamplingParams) -> list[list[Any]]:
    """[[token, bias]]; false for never."""
    return [[int(token), bias] for token, bias in sampling.logit_bias.items()] + [
        [token, False] for token in sampling.banned_tokens
    ]
