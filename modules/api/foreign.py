"""How clients of other servers name sampling settings, and how they spell "off" and "not set"; the table in docs/api.md says the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modules.generation.sampling import MAX_TOKENS, SamplerName, SamplingParams
from modules.settings.declare import hints_of

Fields = dict[str, Any]

_SAMPLERS: Mapping[str, SamplerName] = {
    "penalties": "penalties",
    "repetition_penalty": "penalties",
    "presence_penalty": "penalties",
    "frequency_penalty": "penalties",
    "encoder_repetition_penalty": "penalties",
    "no_repeat_ngram": "penalties",
    "dry": "dry",
    "temperature": "temperature",
    "dynamic_temperature": "temperature",
    "quadratic": "quadratic",
    "quadratic_sampling": "quadratic",
    "top_n_sigma": "top_n_sigma",
    "top_nsigma": "top_n_sigma",
    "top_k": "top_k",
    "top_p": "top_p",
    "typ_p": "typical_p",
    "typical_p": "typical_p",
    "epsilon_cutoff": "epsilon_cutoff",
    "eta_cutoff": "eta_cutoff",
    "tfs": "tfs",
    "tfs_z": "tfs",
    "top_a": "top_a",
    "min_p": "min_p",
    "mirostat": "mirostat",
    "xtc": "xtc",
}
"""Names of samplers in an order, as text-generation-webui, llama.cpp and Aphrodite write them."""


def _called(ours: str) -> Callable[[Any], Fields]:
    return lambda value: {ours: value}


def _as_schema(value: Any) -> Fields:
    return {"json_schema": value if isinstance(value, str) else json.dumps(value)}


def _as_choice(value: Any) -> Fields:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        return {"grammar": value}
    return {"grammar": "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in value)}


def _as_structure(value: Any) -> Fields:
    """vLLM's structured_outputs: one of json, regex, choice and grammar."""
    parts = {"json": _as_schema, "regex": _called("regex"), "choice": _as_choice, "grammar": _called("grammar")}
    given = value if isinstance(value, dict) else {}
    return next((read(given[name]) for name, read in parts.items() if given.get(name) not in (None, "", {}, [])), {})


def _as_order(value: Any) -> Fields:
    names = value.replace(",", "\n").split() if isinstance(value, str) else value
    if not isinstance(names, list):
        return {"sampler_order": value}
    return {
        "sampler_order": tuple(dict.fromkeys(_SAMPLERS[name] for name in names if isinstance(name, str) and name in _SAMPLERS))
    }


def _as_range(value: Any) -> Fields:
    """llama.cpp's repeat_last_n: there 0 is no penalty, which is not what 0 is here."""
    return {"repetition_penalty": 1.0} if value == 0 else {"repetition_penalty_range": value}


def _aliases() -> dict[str, str]:
    return {alias: name for name, info in SamplingParams.model_fields.items() for alias in hints_of(info).aliases}


TABLE: Mapping[str, Callable[[Any], Fields]] = {
    **{
        theirs: _called(ours)
        for theirs, ours in {
            **_aliases(),
            "max_length": "max_tokens",
            "n_predict": "max_tokens",
            "num_predict": "max_tokens",
            "stopping_strings": "stop",
            "stop_sequence": "stop",
            "ignore_eos": "ban_eos",
            "temp": "temperature",
            "typical": "typical_p",
            "tfs_z": "tfs",
            "nsigma": "top_n_sigma",
            "mirostat": "mirostat_mode",
            "rep_pen": "repetition_penalty",
            "repeat_penalty": "repetition_penalty",
            "rep_pen_range": "repetition_penalty_range",
            "freq_pen": "frequency_penalty",
            "presence_pen": "presence_penalty",
            "custom_token_bans": "banned_tokens",
            "bad_words": "banned_strings",
            "sampler_seed": "seed",
            "max_tokens_second": "max_tokens_per_second",
            "grammar_string": "grammar",
            "guided_grammar": "grammar",
            "guided_regex": "regex",
        }.items()
    },
    "repeat_last_n": _as_range,
    "guided_json": _as_schema,
    "guided_choice": _as_choice,
    "structured_outputs": _as_structure,
    "sampler_priority": _as_order,
    "samplers": _as_order,
}
"""Their name → our fields with the value that means the same."""


_UNSET: tuple[Any, ...] = (None, "", [], {})
_OFF: Mapping[tuple[str, int], Any] = {
    ("max_tokens", -1): MAX_TOKENS,
    ("top_k", -1): 0,
    ("repetition_penalty_range", -1): 0,
    ("repetition_penalty", 0): 1.0,
    ("encoder_repetition_penalty", 0): 1.0,
}
"""(field, what clients send for "off") → what is off here. max_tokens: as long as the context has room."""


def in_our_words(said: Mapping[str, Any]) -> Fields:
    """`said` with sampling settings under our names; our own name wins where both are there. What says "not set" is left out."""
    ours = {name: value for name, value in said.items() if name not in TABLE}
    for name in SamplingParams.model_fields:
        if name in ours and _is_unset(name, ours[name]):
            del ours[name]
    for theirs, read in TABLE.items():
        if said.get(theirs) not in _UNSET:
            for name, value in read(said[theirs]).items():
                ours.setdefault(name, value)
    return {name: _spelled(name, value) for name, value in ours.items()}


def _is_unset(name: str, value: Any) -> bool:
    """An empty list is a value of its own where the default is not empty."""
    return value in _UNSET and not (value == [] and name in ("dry_sequence_breakers", "sampler_order"))


def _spelled(name: str, value: Any) -> Any:
    match name, value:
        case (("stop" | "banned_strings"), str()):
            return (value,) if value else ()
        case (("stop" | "banned_strings"), list()):
            return [text for text in value if text != ""]
        case "banned_tokens", str():
            return [token.strip() for token in value.split(",") if token.strip()]
        case "logit_bias", list():
            return _as_bias(value)
        case "json_schema", dict():
            return json.dumps(value)
        case _, int() | float() if not isinstance(value, bool):
            return _OFF.get((name, value), value)  # type: ignore[arg-type] - a float that is whole is found as its int
        case _:
            return value


def _as_bias(pairs: Sequence[Any]) -> Any:
    """llama.cpp's list of [token, bias], where false is never."""
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int) for pair in pairs):
        return pairs
    return {str(token): -100.0 if bias is False else bias for token, bias in pairs}
