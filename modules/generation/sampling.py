"""How the next token is chosen: every parameter, once. The defaults are neutral: they change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal, get_args

from pydantic import field_validator, model_validator

from modules.settings.declare import Settings, setting

SamplerName = Literal[
    "penalties",
    "dry",
    "quadratic",
    "temperature",
    "top_n_sigma",
    "top_k",
    "top_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "tfs",
    "top_a",
    "min_p",
    "mirostat",
    "xtc",
]
DEFAULT_ORDER: tuple[SamplerName, ...] = get_args(SamplerName)
MAX_TOKENS = 1_048_576
_LONGEST_ID = 20


MAX_BANNED_STRINGS = 1000
"""Each is looked for at every token of a reply."""


class SamplingParams(Settings):
    """What a request, a preset and the Parameters tab can set."""

    # --- length and stopping
    max_tokens: int = setting(512, min=1, max=MAX_TOKENS, step=1, group="Length", aliases=["max_new_tokens"])
    """The most tokens one reply may have."""
    truncation_length: int = setting(0, min=0, max=MAX_TOKENS, step=64, group="Length")
    """Leave out the oldest part of a prompt that would have more tokens than this with its reply; 0 is the model's whole context."""
    min_tokens: int = setting(0, min=0, max=MAX_TOKENS, step=1, group="Length", aliases=["min_length"])
    """Do not end the reply before this many tokens; 0 lets the model decide."""
    stop: tuple[str, ...] = setting((), group="Length")
    """Texts that end the reply when they appear; they are not shown."""
    ban_eos: bool = setting(False, group="Length", aliases=["ban_eos_token"])
    """Never let the model end the reply by itself: it goes on to max_tokens."""

    # --- the shape of the distribution
    do_sample: bool = setting(True, group="Temperature")
    """Draw from the distribution; off always takes the likeliest token."""
    temperature: float = setting(1.0, min=0, max=5, step=0.01, slider_max=2, group="Temperature")
    """Above 1 evens the odds, below 1 favours likely tokens, 0 always takes the likeliest; 1 changes nothing."""
    temperature_last: bool = setting(False, group="Temperature")
    """Apply temperature after all other filters instead of at its place in the order."""
    dynamic_temperature: bool = setting(False, group="Temperature")
    """Let the temperature follow the uncertainty of each step, between the two bounds below."""
    dynatemp_low: float = setting(1.0, min=0.01, max=5, step=0.01, group="Temperature")
    """Temperature where the model is certain (with dynamic temperature)."""
    dynatemp_high: float = setting(1.0, min=0.01, max=5, step=0.01, group="Temperature")
    """Temperature where the model is most uncertain (with dynamic temperature)."""
    dynatemp_exponent: float = setting(1.0, min=0.01, max=10, step=0.01, group="Temperature")
    """How uncertainty maps between the two bounds; 1 is a straight line."""
    smoothing_factor: float = setting(0.0, min=0, max=10, step=0.01, group="Temperature")
    """Quadratic smoothing of the scores around the likeliest token; 0 changes nothing."""
    smoothing_curve: float = setting(1.0, min=1, max=10, step=0.01, group="Temperature")
    """Steepness of the smoothing; 1 is the plain quadratic curve."""

    # --- filters
    top_p: float = setting(1.0, min=0, max=1, step=0.01, group="Filters")
    """Keep the likeliest tokens that together reach this probability; 1 keeps them all."""
    top_k: int = setting(0, min=0, max=1_000_000, step=1, group="Filters")
    """Keep this many of the likeliest tokens; 0 keeps them all."""
    min_p: float = setting(0.0, min=0, max=1, step=0.01, group="Filters")
    """Drop tokens less likely than this share of the likeliest one; 0 keeps them all."""
    top_n_sigma: float = setting(0.0, min=0, max=20, step=0.05, slider_max=5, group="Filters")
    """Keep tokens whose score is within this many standard deviations of the best; 0 keeps them all."""
    typical_p: float = setting(1.0, min=0, max=1, step=0.01, group="Filters")
    """Keep the tokens whose surprise is closest to the expected one, up to this probability; 1 keeps them all."""
    top_a: float = setting(0.0, min=0, max=1, step=0.01, group="Filters")
    """Drop tokens less likely than this times the square of the best probability; 0 keeps them all."""
    tfs: float = setting(1.0, min=0, max=1, step=0.01, group="Filters")
    """Tail-free sampling: cut where the curve of sorted probabilities flattens; 1 keeps them all."""
    epsilon_cutoff: float = setting(0.0, min=0, max=9, step=0.01, group="Filters")
    """Drop tokens less likely than this, in units of 1e-4; 0 keeps them all."""
    eta_cutoff: float = setting(0.0, min=0, max=20, step=0.01, slider_max=10, group="Filters")
    """Like epsilon cutoff, but lower where the model is uncertain, in units of 1e-4; 0 keeps them all."""
    xtc_probability: float = setting(0.0, min=0, max=1, step=0.01, group="Filters")
    """How often to exclude the top choices (XTC) so that less usual words come up; 0 is never."""
    xtc_threshold: float = setting(0.1, min=0, max=0.5, step=0.01, group="Filters")
    """XTC counts tokens at least this likely as top choices, and keeps only the least likely of them."""
    mirostat_mode: Literal[0, 2] = setting(0, group="Filters")
    """2 keeps the surprise of the text near tau (Mirostat 2) and replaces the other filters; 0 is off."""
    mirostat_tau: float = setting(5.0, min=0, max=10, step=0.01, group="Filters")
    """The surprise per token, in bits, that Mirostat aims at."""
    mirostat_eta: float = setting(0.1, min=0, max=1, step=0.01, group="Filters")
    """How quickly Mirostat corrects itself."""

    # --- repetition
    repetition_penalty: float = setting(1.0, min=0.01, max=10, step=0.01, slider_max=1.5, group="Repetition")
    """Above 1 makes tokens less likely that are already in the text; 1 changes nothing."""
    repetition_penalty_range: int = setting(0, min=0, max=MAX_TOKENS, step=64, group="Repetition")
    """How many of the last tokens the penalties look at; 0 is all of them."""
    encoder_repetition_penalty: float = setting(1.0, min=0.01, max=10, step=0.01, slider_max=1.5, group="Repetition")
    """Above 1 makes tokens of the prompt more likely; 1 changes nothing."""
    presence_penalty: float = setting(0.0, min=-2, max=2, step=0.05, group="Repetition")
    """Taken from the score of every token that the reply has used; 0 changes nothing."""
    frequency_penalty: float = setting(0.0, min=-2, max=2, step=0.05, group="Repetition")
    """Taken from the score of a token once for each time the reply has used it; 0 changes nothing."""
    no_repeat_ngram_size: int = setting(0, min=0, max=20, step=1, group="Repetition")
    """Never repeat a run of this many tokens; 0 allows all."""
    dry_multiplier: float = setting(0.0, min=0, max=5, step=0.01, group="Repetition")
    """Strength of DRY, which penalises a token that would extend a repeated run; 0 is off."""
    dry_base: float = setting(1.75, min=1, max=4, step=0.01, group="Repetition")
    """How fast the DRY penalty grows with the length of the run."""
    dry_allowed_length: int = setting(2, min=1, max=64, step=1, group="Repetition")
    """Runs up to this many tokens may repeat without a DRY penalty."""
    dry_sequence_breakers: tuple[str, ...] = setting(("\n", ":", '"', "*"), group="Repetition")
    """Texts across which DRY does not look for repetitions."""
    penalty_alpha: float = setting(0.0, min=0, max=1, step=0.01, group="Repetition")
    """Contrastive search, with sampling off: of the top_k likeliest tokens (16 at most), one that is unlike the text; 0 is off."""

    # --- guidance, bans, order
    guidance_scale: float = setting(1.0, min=0.01, max=10, step=0.01, slider_max=3, group="Guidance")
    """Classifier-free guidance: above 1 pushes the reply away from the negative prompt; 1 is off."""
    negative_prompt: str = setting("", group="Guidance", lines=2)
    """What guidance pushes away from."""
    logit_bias: dict[str, float] = setting({}, group="Guidance")
    """Added to the score of tokens, by token id, from -100 (never) to 100 (always)."""
    banned_tokens: tuple[int, ...] = setting((), group="Guidance")
    """Token ids that never appear."""
    banned_strings: tuple[str, ...] = setting((), group="Guidance")
    """Texts that never appear, however they are cut into tokens."""
    sampler_order: tuple[SamplerName, ...] = setting(DEFAULT_ORDER, group="Guidance")
    """The order in which the filters act; those not named are skipped."""
    seed: int = setting(-1, min=-1, max=2**63 - 1, step=1, group="Guidance")
    """The same seed and request give the same reply; -1 draws a new one each time. In 16 bits or fewer that is sure while no other reply is computed beside it and the prompt is still in the cache; llama.cpp does not promise it for a prompt from its cache."""

    # --- form
    grammar: str = setting("", group="Form", lines=4)
    """The reply must follow this grammar, written in GBNF or Lark."""
    regex: str = setting("", group="Form")
    """The reply must match this regular expression."""
    json_schema: str = setting("", group="Form", lines=4)
    """The reply must be JSON that follows this JSON schema; {} allows any JSON."""

    # --- tokens and text
    add_bos: bool = setting(True, group="Text", aliases=["add_bos_token"])
    """Put the model's begin-of-text token before a plain prompt; chat templates decide this themselves."""
    skip_special_tokens: bool = setting(True, group="Text")
    """Leave markers such as end-of-turn out of the text."""
    max_tokens_per_second: float = setting(0.0, min=0, max=1000, step=1, slider_max=100, group="Text")
    """Slow the reply down to reading speed; 0 is as fast as it goes."""

    @field_validator("logit_bias")
    @classmethod
    def _bias_in_range(cls, value: dict[str, float]) -> dict[str, float]:
        for token, bias in value.items():
            if not (token.isascii() and token.isdigit()) or len(token) > _LONGEST_ID:
                raise ValueError(f"{token[:_LONGEST_ID]!r}{'…' * (len(token) > _LONGEST_ID)} is not a token id")
            if not -100 <= bias <= 100:
                raise ValueError(f"the bias of token {token} must be between -100 and 100, not {bias:g}")
        return value

    @field_validator("dry_sequence_breakers", mode="before")
    @classmethod
    def _breakers_as_list(cls, value: Any) -> Any:
        """Presets and clients write them as a list, as the JSON text of one, or as the quoted texts alone: "\\n", ":"."""
        if not isinstance(value, str):
            return value
        text = value.strip()
        try:
            return json.loads(text if text.startswith("[") else f"[{text}]", strict=False)
        except (ValueError, RecursionError):
            raise ValueError('write them as a list of texts, such as ["\\n", ":"]') from None

    @field_validator("banned_strings")
    @classmethod
    def _not_too_many(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Each is looked for at every token of a reply."""
        if len(value) > MAX_BANNED_STRINGS:
            raise ValueError(f"there may be {MAX_BANNED_STRINGS} texts at most, not {len(value)}")
        return value

    @field_validator("stop", "banned_strings")
    @classmethod
    def _no_empty_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text for text in value):
            raise ValueError("an empty text is in the list; leave it out")
        return value

    @model_validator(mode="after")
    def _one_form(self) -> SamplingParams:
        if sum(map(bool, (self.grammar, self.regex, self.json_schema))) > 1:
            raise ValueError("choose one of grammar, regex and json_schema")
        return self

    def active(self) -> tuple[SamplerName, ...]:
        """The samplers whose own parameters change something, wherever they stand in `sampler_order`."""
        return tuple(name for name in DEFAULT_ORDER if _ACTIVE[name](self))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return not self.do_sample or self.temperature == 0

    @property
    def contrastive(self) -> bool:
        """Whether tokens are chosen by contrastive search."""
        return self.greedy and self.penalty_alpha > 0 and self.top_k > 1


def _penalises(p: SamplingParams) -> bool:
    neutral = p.repetition_penalty == p.encoder_repetition_penalty == 1 and p.frequency_penalty == p.presence_penalty == 0
    return not neutral or p.no_repeat_ngram_size > 0


def _changes_temperature(p: SamplingParams) -> bool:
    return not p.dynatemp_low == p.dynatemp_high == 1 if p.dynamic_temperature else p.temperature != 1


_ACTIVE: dict[SamplerName, Callable[[SamplingParams], bool]] = {
    "penalties": _penalises,
    "dry": lambda p: p.dry_multiplier > 0,
    "quadratic": lambda p: p.smoothing_factor > 0,
    "temperature": _changes_temperature,
    "top_n_sigma": lambda p: p.top_n_sigma > 0,
    "top_k": lambda p: p.top_k > 0,
    "top_p": lambda p: p.top_p < 1,
    "typical_p": lambda p: p.typical_p < 1,
    "epsilon_cutoff": lambda p: p.epsilon_cutoff > 0,
    "eta_cutoff": lambda p: p.eta_cutoff > 0,
    "tfs": lambda p: p.tfs < 1,
    "top_a": lambda p: p.top_a > 0,
    "min_p": lambda p: p.min_p > 0,
    "mirostat": lambda p: p.mirostat_mode == 2,
    "xtc": lambda p: p.xtc_probability > 0,
}
