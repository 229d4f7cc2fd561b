"""What the requests of chat and completions share: our sampling settings, OpenAI's fields around them, and how they become one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from pydantic import ConfigDict, Field, WithJsonSchema, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.api import foreign, large_bodies
from modules.api.errors import ModelNotFound
from modules.api.tolerance import Tolerant
from modules.errors import NotFound, UserError
from modules.generation.sampling import MAX_TOKENS, SamplingParams
from modules.generation.types import GenerationRequest, LoadedModel
from modules.library.models import same_name
from modules.settings.declare import hints_of, setting
from modules.settings.texts import check_text

if TYPE_CHECKING:
    from modules.app import App

log = logging.getLogger(__name__)

MAX_CHOICES = 128
MAX_STOPS = 64
MAX_MESSAGES = 10_000
"""Of one request: each costs time to read, whether or not the context has room for it."""
IGNORED = "x-textloom-ignored"
"""The header that names what had no effect."""
MAX_IGNORED = 4096
"""Letters of that header; more names than fit are counted."""
MAX_LOGGED = 1000
"""Names that a server remembers to have logged."""


Stops = Annotated[
    tuple[str, ...],
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STOPS},
            ],
            "default": [],
        }
    ),
]


class StreamOptions(Tolerant):
    """What a stream brings besides the text."""

    include_usage: bool = False
    """Send one more chunk at the end, with the token counts."""
    continuous_usage_stats: bool = False
    """With include_usage: every chunk has the counts so far of its reply."""
    include_obfuscation: bool = False
    """Accepted; nothing is padded here."""


class Body(Tolerant):
    """What every body of a request has in common: texts are whole characters, and an empty one is the same as leaving a field out."""

    conversation: ClassVar[str | None] = None
    """The field with up to MAX_MESSAGES turns, counted before anything of them is read."""

    @classmethod
    def in_our_words(cls, said: Mapping[str, Any]) -> dict[str, Any]:
        """Empty texts stay where one is needed."""
        return {name: value for name, value in said.items() if value != "" or _is_needed(cls, name)}

    @model_validator(mode="before")
    @classmethod
    def _has_whole_characters(cls, value: Any) -> Any:
        turns = value.get(cls.conversation) if isinstance(value, dict) else None
        if isinstance(turns, list) and len(turns) > MAX_MESSAGES:
            raise UserError(f"'{cls.conversation}' must have at most {MAX_MESSAGES} items.", param=cls.conversation)
        check_text(value)
        return value


def _is_needed(kind: type[Body], name: str) -> bool:
    return name in kind.model_fields and kind.model_fields[name].is_required()


def sent(kind: Any) -> Any:
    """For `Annotated[kind, sent(kind)]`: the body of a request, once what it says without effect is noted. Raises UserError."""

    async def take(request: Request, body: Any) -> Any:
        if isinstance(body, Body):
            look = partial(body.ignored, strict=request.app.state.strict_api)
            is_long = len(await request.body()) > large_bodies.SMALL
            note_ignored(request, await run_in_threadpool(look) if is_long else look())
        return body

    take.__annotations__ = {"request": Request, "body": kind, "return": kind}
    take.__defaults__ = None if isinstance(kind, type) else (None,)
    return Depends(take)


def note_ignored(request: HTTPConnection, names: Iterable[str]) -> None:
    """Tell the client in a header, and the log once, that fields of its request have no effect. Raises UserError under --strict-api."""
    noted: dict[str, None] = request.scope.setdefault("state", {}).setdefault("ignored", {})
    logged: dict[str, None] = request.app.state.logged
    new = []
    for name in names:
        if request.app.state.strict_api:
            raise UserError(f"'{name}' has no effect here, and --strict-api refuses what has none. Leave it out.", param=name)
        noted[name] = None
        if name not in logged and len(logged) < MAX_LOGGED:
            logged[name] = None
            new.append(_printable(name))
    if new:
        log.warning("a request had fields without effect: %s", ", ".join(new))


def _printable(name: str) -> str:
    return quote(name[:200], safe="*.[]$ ", errors="replace")


class IgnoredHeader:
    """ASGI middleware: puts the names that `note_ignored` noted into the head of the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start" and (names := scope.get("state", {}).get("ignored")):
                MutableHeaders(scope=message)[IGNORED] = _in_one_line(names)
            await send(message)

        await self._app(scope, receive, told)


def _in_one_line(names: Collection[str]) -> str:
    line, rest = "", len(names)
    for name in map(_printable, names):
        if len(line) + len(name) > MAX_IGNORED:
            return f"{line}, and {rest} more" if line else f"{rest} fields"
        line, rest = f"{line}, {name}" if line else name, rest - 1
    return line


def install(web: FastAPI, app: App) -> None:
    """What requests to `web` need of it: whether unknown fields are refused, and the header that names them otherwise."""
    web.state.strict_api = app.options.strict_api
    web.state.logged = {}
    web.add_middleware(IgnoredHeader)


class SamplingBody(Body, SamplingParams):
    """A body with the sampling settings as fields, under our names or those of other servers."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def in_our_words(cls, said: Mapping[str, Any]) -> dict[str, Any]:
        return foreign.in_our_words(super().in_our_words(said))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return (*super().names(), *foreign.TABLE)


class CommonRequest(SamplingBody):
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
    user: Any = None
    """Accepted, without effect."""
    metadata: Any = None
    """Accepted, without effect."""
    store: Any = None
    """Accepted, without effect: nothing is stored."""
    service_tier: Any = None
    """Accepted, without effect."""
    safety_identifier: Any = None
    """Accepted, without effect."""
    prompt_cache_key: Any = None
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
    values = {**app.sampling.given(), **preset, **own, **more}
    if values.get("max_tokens", 0) > model.context_length:
        values["max_tokens"] = model.context_length
    return SamplingParams.read(values)


def _refuse_without_effect(model: LoadedModel, own: Mapping[str, Any]) -> None:
    for name, value in own.items():
        field = SamplingParams.model_fields[name]
        neutral = field.get_default(call_default_factory=True)
        if name not in model.capabilities.samplers and hints_of(field).group in _TASTE and value != neutral:
            raise UserError(f"{name} has no effect with the loader of {model.name}. Leave it out.", param=name)


def in_words_of(error: UserError, place: Callable[[str], str]) -> UserError:
    """A mistake in a JSON schema, with its place in the request as it came. place: from one in the schema that was made of it."""
    field, _, where = (error.param or "").partition(".")
    if field != "json_schema":
        return error
    shown = place(where)
    return UserError(error.message.replace(f"cannot be used at {where}:", f"cannot be used at {shown}:"), param=shown)


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
