"""What the requests of chat and completions share: our sampling settings, OpenAI's fields around them, and how they become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from modules.api.errors import ModelNotFound
from modules.errors import NotFound, UserError
from modules.generation.sampling import MAX_TOKENS, SamplingParams
from modules.generation.types import GenerationRequest, LoadedModel
from modules.library.models import same_name
from modules.settings.declare import Settings, hints_of, setting
from modules.settings.texts import check_text

if TYPE_CHECKING:
    from modules.app import App

MAX_CHOICES = 128
MAX_STOPS = 64


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOPS},
            ],
            "default": [],
        }
    ),
]


class StreamOptions(Settings):
    """What a stream brings besides the text."""

    include_usage: bool = False
    """Send one more chunk at the end, with the token counts."""
    continuous_usage_stats: bool = False
    """With include_usage: every chunk has the counts so far of its reply."""
    include_obfuscation: bool = False
    """Accepted; nothing is padded here."""


class Body(Settings):
    """What every body of a request has in common: null is the same as leaving a field out, and texts are whole characters."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, value: Any) -> Any:
        check_text(value)
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class CommonRequest(Body, SamplingParams):
    """Sampling settings, and the fields of OpenAI's protocol that chat and completions share."""

    model: str | None = None
    """The name of the loaded model (.gguf may be left out), or of one of its adapters; left out, it is the loaded model."""
    stream: bool = False
    """Send the reply piece by piece, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    """How many replies to make for the same prompt."""
    stop: Stops = setting((), group="Length")
    """One text or several that end the reply when they appear; they are not shown."""
    preset: str | None = None
    """The name of a preset; the fields of the request go over it."""
    adapter: str | None = None
    """The name of a loaded LoRA to answer with."""
    adapter_strength: float = Field(1.0, ge=0, le=2)
    """How strongly the adapter acts: 0 not at all, 1 as trained."""
    truncate: Literal["refuse", "oldest"] = "refuse"
    """What to do with a prompt that is longer than the context: refuse it, or leave out the oldest part."""

    # --- accepted for the sake of clients, without effect here
    user: str | None = None
    """Accepted, without effect."""
    metadata: dict[str, str] | None = None
    """Accepted, without effect."""
    store: bool | None = None
    """Accepted, without effect: nothing is stored."""
    service_tier: str | None = None
    """Accepted, without effect."""
    safety_identifier: str | None = None
    """Accepted, without effect."""
    prompt_cache_key: str | None = None
    """Accepted, without effect: equal beginnings are always shared."""

    @model_validator(mode="after")
    def _options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        if len(self.stop) > MAX_STOPS:
            raise ValueError(f"stop may have {MAX_STOPS} texts at most, not {len(self.stop)}")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and self.include_usage and self.stream_options.continuous_usage_stats


_TASTE = ("Temperature", "Filters", "Repetition", "Guidance")
"""The groups of settings that change which tokens come: one of them without effect is an error, not a detail."""


def effective_sampling(
    app: App, model: LoadedModel, body: CommonRequest, owner: str, more: Mapping[str, Any]
) -> SamplingParams:
    """The server's defaults, the preset of `owner` over them, the request's own fields over that, and `more` last. Raises UserError."""
    names = SamplingParams.model_fields
    own = {name: value for name, value in body.given().items() if name in names}
    _refuse_without_effect(model, own)
    if own.keys() & {"grammar", "regex", "json_schema"} and not model.capabilities.grammar:
        raise UserError(f"{model.name} cannot be held to a grammar or schema with its loader.", param="response_format")
    preset = app.presets.of(owner).read(body.preset).given() if body.preset is not None else {}
    return SamplingParams.read({**app.sampling.given(), **preset, **own, **more})


def _refuse_without_effect(model: LoadedModel, own: Mapping[str, Any]) -> None:
    for name, value in own.items():
        field = SamplingParams.model_fields[name]
        neutral = field.get_default(call_default_factory=True)
        if name not in model.capabilities.samplers and hints_of(field).group in _TASTE and value != neutral:
            raise UserError(f"{name} has no effect with the loader of {model.name}. Leave it out.", param=name)


def chosen_adapter(model: LoadedModel, body: CommonRequest) -> str | None:
    """The adapter that the request names, by `adapter` or in place of a model. Raises NotFound for names that are neither."""
    if body.adapter is not None and body.adapter not in model.adapters:
        have = f"Loaded are: {', '.join(model.adapters)}." if model.adapters else "None is loaded."
        raise NotFound(f"There is no adapter {body.adapter}. {have}", param="adapter")
    if body.model in model.adapters:
        return body.adapter or body.model
    if body.model is None or same_name(body.model, model.name):
        return body.adapter
    raise ModelNotFound(
        f"The model {body.model} is not loaded; {model.name} is. Name that one, or leave 'model' out.", param="model"
    )


def shown_name(model: LoadedModel, adapter: str | None) -> str:
    """What the reply calls the model: the adapter's name where one answered."""
    return adapter or model.name


def whole_context(model: LoadedModel, app: App) -> int:
    """max_tokens where nobody said: what is left of the context."""
    return app.sampling.max_tokens if "max_tokens" in app.sampling.model_fields_set else min(model.context_length, MAX_TOKENS)


def replies_of(request: GenerationRequest, n: int) -> list[GenerationRequest]:
    """`n` requests for the same prompt, each with its own seed where one was given."""
    sampling = request.sampling
    if n == 1:
        return [request]
    seeds = [sampling.seed + step if sampling.seed >= 0 else -1 for step in range(n)]
    return [replace(request, sampling=sampling.changed({"seed": seed % 2**63 if seed >= 0 else -1})) for seed in seeds]
