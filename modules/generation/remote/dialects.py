"""What engines understand beyond OpenAI's own fields. OpenAI itself refuses unknown fields, so only what differs is sent."""

from __future__ import annotations

import json
from typing import Any, Literal

from modules.errors import UserError
from modules.generation.llamacpp_sampling_params import SUPPORTED as LLAMACPP_SAMPLERS
from modules.generation.llamacpp_sampling_params import as_fields
from modules.generation.sampling import SamplingParams

Dialect = Literal["plain", "vllm", "llama.cpp", "transformers"]

_STANDARD = frozenset(
    [
        "max_tokens",
        "truncation_length",
        "temperature",
        "do_sample",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stop",
        "logit_bias",
        "banned_tokens",
        "json_schema",
        "max_tokens_per_second",
    ]
)
_COMMON = {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}
"""Ours → theirs: what nearly every open engine takes under this name."""
_VLLM = {
    **_COMMON,
    "min_tokens": "min_tokens",
    "ban_eos": "ignore_eos",
    "skip_special_tokens": "skip_special_tokens",
    "banned_strings": "bad_words",
}
_TRANSFORMERS = {
    **_COMMON,
    "typical_p": "typical_p",
    "min_tokens": "min_new_tokens",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "epsilon_cutoff": "epsilon_cutoff",
    "eta_cutoff": "eta_cutoff",
}
_EXTRAS: dict[Dialect, dict[str, str]] = {"plain": _COMMON, "vllm": _VLLM, "transformers": _TRANSFORMERS}
_MOST_STOPS = 4


def samplers_of(dialect: Dialect) -> frozenset[str]:
    """The names of SamplingParams fields that reach the engine, or are done here."""
    match dialect:
        case "llama.cpp":
            return LLAMACPP_SAMPLERS - {"min_tokens", "regex", "add_bos", "skip_special_tokens"}
        case "vllm":
            return _STANDARD | frozenset(_VLLM) | {"regex", "grammar"}
        case "transformers":
            return (_STANDARD - {"json_schema", "logit_bias", "banned_tokens", "presence_penalty"}) | frozenset(_TRANSFORMERS)
        case "plain":
            return _STANDARD | frozenset(_COMMON)


def standard_fields(sampling: SamplingParams) -> dict[str, Any]:
    """OpenAI's own fields, where they are not OpenAI's defaults."""
    biases = {**sampling.logit_bias, **{str(token): -100.0 for token in sampling.banned_tokens}}
    fields: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": sampling.top_p,
    }
    optional = {
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed if sampling.seed >= 0 else None,
        # The protocol allows four; all of them are looked for here too.
        "stop": list(sampling.stop[:_MOST_STOPS]),
        "logit_bias": biases,
    }
    return fields | {name: value for name, value in optional.items() if value not in (None, 0, [], {})}


def extra_fields(dialect: Dialect, sampling: SamplingParams, context_length: int) -> dict[str, Any]:
    """Fields beside OpenAI's. Raises UserError for a form that this engine cannot be held to."""
    form = _form(dialect, sampling)
    if dialect == "llama.cpp":
        # llama-server has defaults of its own (top-k 40, min-p 0.05), so it is told everything.
        fields = as_fields(sampling, context_length)
        progress = {"return_progress": True, "reasoning_format": "none", "ignore_eos": sampling.ban_eos}
        return {**fields, **progress, **form}
    given = sampling.differences()
    extras = {theirs: given[ours] for ours, theirs in _EXTRAS[dialect].items() if ours in given}
    if dialect == "vllm":
        return {**extras, **form}
    if dialect == "transformers":
        units = {name: extras[name] * 1e-4 for name in ("epsilon_cutoff", "eta_cutoff") if name in extras}
        config = {"do_sample": not sampling.greedy, "top_k": sampling.top_k, **extras, **units}
        return {"generation_config": json.dumps(config)}
    return {**extras, **form}


def _form(dialect: Dialect, sampling: SamplingParams) -> dict[str, Any]:
    schema = json.loads(sampling.json_schema) if sampling.json_schema else None
    match dialect:
        case "vllm":
            forms = {"json": schema, "regex": sampling.regex or None, "grammar": sampling.grammar or None}
            wanted = {name: form for name, form in forms.items() if form is not None}
            return {"structured_outputs": wanted} if wanted else {}
        case "llama.cpp" if schema is not None:
            return {"json_schema": schema}
        case "llama.cpp" if sampling.grammar:
            return {"grammar": sampling.grammar}
        case "plain" if schema in ({}, {"type": "object"}):  # which OpenAI refuses as a strict schema
            return {"response_format": {"type": "json_object"}}
        case "plain" if schema is not None:
            form = {"name": "reply", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": form}}
    named = next((name for name in ("grammar", "regex", "json_schema") if getattr(sampling, name)), None)
    if named is not None:
        raise UserError(f"This engine takes no {named.replace('_', ' ')}. Load the model here to use one.", param=named)
    return {}
