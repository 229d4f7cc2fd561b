"""What OpenAI's protocol has no words for, below /v1/internal: tokens, prompts, and what there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from modules.api.chat import generation_request
from modules.api.chat_request import ChatCompletionRequest
from modules.api.common import Body, SamplingBody, sent
from modules.api.errors import REFUSALS
from modules.api.large_bodies import route_class
from modules.errors import UserError
from modules.generation.model_manager import State
from modules.generation.sampling import SamplingParams
from modules.generation.template import TurnKind, has_no_place_for, template_problem
from modules.generation.types import GenerationRequest, TokenAlternative, name_of, own_bytes

if TYPE_CHECKING:
    from modules.app import App

MAX_ALTERNATIVES = 1000


class TextBody(Body):
    """A text."""

    text: str
    special: bool = True
    """Read markers such as <|im_end|> as tokens, and add what the model adds."""


class TokensBody(Body):
    """Token ids."""

    tokens: tuple[Annotated[int, Field(ge=0, le=2**31 - 1)], ...]


class LogitsBody(SamplingBody):
    """A text and its next token. Every sampling setting of the Parameters tab is a field."""

    prompt: str
    top: int = Field(50, ge=1, le=MAX_ALTERNATIVES)
    """How many of the likeliest tokens."""
    use_samplers: bool = False
    """Also report what the sampling settings leave."""


class Length(BaseModel):
    """How many tokens a text has."""

    length: int


class Tokens(Length):
    """The tokens of a text."""

    tokens: list[int]


class Text(BaseModel):
    """The text of tokens."""

    text: str


class Likely(BaseModel):
    """A token that could come next; logprob is the natural logarithm of its probability, bytes its own part of a text.

    The text of what is only a part of a character is its bytes: `\\xe4`.
    """

    id: int
    text: str
    logprob: float
    bytes: list[int]


class LikelyTokens(BaseModel):
    """The likeliest next tokens, the best first. left: what the sampling settings leave, where that was asked for."""

    tokens: list[Likely]
    left: list[Likely] | None = None


class RenderedChat(Tokens):
    """A conversation as the model sees it. dropped_messages: how many of the oldest turns did not fit."""

    prompt: str
    dropped_messages: int


class ModelInfo(BaseModel):
    """The loaded model; state says whether there is one. One that is asleep is loaded again for the next request."""

    state: State
    name: str | None
    progress: str
    error: str | None
    context_length: int | None = None
    adapters: list[str] = []
    template_problem: str | None = None
    """What is wrong with the model's chat template, where it fails its test."""
    template_has_no_place_for: list[TurnKind] = []
    """Turns that the template cannot show as they are: what the system says goes into the next turn of the user, before a first
    greeting comes an empty turn, repeated turns become one; a tool's answer is refused."""
    capabilities: dict[str, Any] = {}
    running: int = 0
    waiting: int = 0


class ModelEntry(BaseModel):
    """A model on disk. problem: why it cannot be loaded; warnings: what is odd about it, although it can."""

    name: str
    format: str
    size_bytes: int
    architecture: str | None
    quantization: str | None
    context_length: int | None
    loaded: bool
    problem: str | None
    warnings: list[str]


class ModelEntries(BaseModel):
    """Every model on disk."""

    models: list[ModelEntry]


class AdapterEntry(BaseModel):
    """An adapter on disk."""

    name: str
    base_model: str | None
    loaded: bool
    problem: str | None


class AdapterEntries(BaseModel):
    """Every adapter on disk."""

    adapters: list[AdapterEntry]


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"


def router(app: App) -> APIRouter:
    """The routes for everyone with a key."""
    routes = APIRouter(prefix="/v1/internal", tags=["internal"], responses=REFUSALS, route_class=route_class(app.access))
    _add_text(routes, app)
    _add_knowledge(routes, app)
    return routes


def _add_text(routes: APIRouter, app: App) -> None:
    @routes.post("/token-count")
    def count_tokens(body: Annotated[TextBody, sent(TextBody)]) -> Length:
        """Count the tokens of a text."""
        with app.manager.lease(wait=True) as model:
            return Length(length=len(model.tokenize(body.text, special=body.special)))

    @routes.post("/encode")
    def encode(body: Annotated[TextBody, sent(TextBody)]) -> Tokens:
        """The token ids of a text."""
        with app.manager.lease(wait=True) as model:
            tokens = model.tokenize(body.text, special=body.special)
        return Tokens(length=len(tokens), tokens=tokens)

    @routes.post("/decode")
    def decode(body: Annotated[TokensBody, sent(TokensBody)]) -> Text:
        """The text of token ids."""
        with app.manager.lease(wait=True) as model:
            return Text(text=model.detokenize(body.tokens))

    @routes.post("/logits")
    def list_next_tokens(body: Annotated[LogitsBody, sent(LogitsBody)]) -> LikelyTokens:
        """What could come next, and how likely."""
        with app.manager.lease(wait=True) as model:
            if not model.capabilities.logprobs:
                raise UserError(f"{model.name} cannot report log-probabilities with its loader.", param="prompt")
            found = model.next_tokens(GenerationRequest(body.prompt, _sampling(body)), body.top)
        if not body.use_samplers:
            return LikelyTokens(tokens=_likely(found.model))
        if found.left is None:
            raise UserError(f"{model.name} cannot tell what sampling leaves.", param="use_samplers")
        return LikelyTokens(tokens=_likely(found.model), left=_likely(found.left))

    @routes.post("/chat-prompt")
    async def render_chat_prompt(
        body: Annotated[ChatCompletionRequest, sent(ChatCompletionRequest)], request: Request
    ) -> RenderedChat:
        """The exact prompt that a chat request makes, without answering it."""
        owner = app.access.require_api(request)
        await app.manager.ready()
        with app.manager.lease() as model:
            rendered = await run_in_threadpool(model.render, await generation_request(app, model, body, owner))
        tokens = list(rendered.tokens)
        return RenderedChat(prompt=rendered.text, length=len(tokens), tokens=tokens, dropped_messages=rendered.dropped_messages)


def _sampling(body: LogitsBody) -> SamplingParams:
    return SamplingParams.read({name: value for name, value in body.given().items() if name in SamplingParams.model_fields})


def _likely(tokens: Sequence[TokenAlternative]) -> list[Likely]:
    return [Likely(id=token.id, text=name_of(token), logprob=token.logprob, bytes=list(own_bytes(token))) for token in tokens]


def _add_knowledge(routes: APIRouter, app: App) -> None:
    @routes.get("/health")
    def server_health() -> Health:
        """Whether the server answers."""
        return Health()

    @routes.get("/model/info")
    def model_info() -> ModelInfo:
        """What is loaded, and what it can do."""
        status, model = app.manager.status, app.manager.loaded
        info = ModelInfo(state=status.state, name=status.name, progress=status.progress, error=status.error)
        if model is None:
            return info
        able, busy, template = model.capabilities, model.status(), model.chat_template
        return info.model_copy(
            update={
                "context_length": model.context_length,
                "adapters": list(model.adapters),
                "capabilities": {**vars(able), "samplers": sorted(able.samplers)},
                "template_problem": template_problem(template) if template else None,
                "template_has_no_place_for": list(has_no_place_for(template)) if template else [],
                "running": busy.running,
                "waiting": busy.waiting,
            }
        )

    @routes.get("/model/list")
    def list_models_on_disk() -> ModelEntries:
        """Every model on disk."""
        loaded = app.manager.status.name
        return ModelEntries(
            models=[
                ModelEntry(
                    name=spec.name,
                    format=spec.format,
                    size_bytes=spec.size_bytes,
                    architecture=spec.architecture,
                    quantization=spec.quantization.label or spec.quantization.method if spec.quantization else None,
                    context_length=spec.context_length,
                    loaded=spec.name == loaded,
                    problem=spec.problem,
                    warnings=list(spec.warnings),
                )
                for spec in app.models.all()
            ]
        )

    @routes.get("/adapters/list")
    def list_adapters_on_disk() -> AdapterEntries:
        """Every adapter on disk."""
        model = app.manager.loaded
        loaded = model.adapters if model is not None else ()
        return AdapterEntries(
            adapters=[
                AdapterEntry(name=spec.name, base_model=spec.base_model, loaded=spec.name in loaded, problem=spec.problem)
                for spec in app.loras.all()
            ]
        )
