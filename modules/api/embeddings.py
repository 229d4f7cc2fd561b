"""POST /v1/embeddings: texts as vectors, from the model of --embedding-model or from the loaded one."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from fastapi import APIRouter
from pydantic import BaseModel, Field

from modules.api.common import Body, sent
from modules.api.completion_request import Tokens
from modules.api.errors import REFUSALS, ModelNotFound
from modules.api.large_bodies import route_class
from modules.errors import ContextTooLong, UserError
from modules.library.models import same_name

if TYPE_CHECKING:
    from modules.app import App

MAX_TEXTS = 2048
TextInput = Annotated[str, Field(min_length=1)]


class EmbeddingRequest(Body):
    """Texts to compare with each other."""

    input: (
        TextInput
        | Tokens
        | Annotated[tuple[TextInput, ...], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    """A text, several texts, the token ids of one, or the token ids of several."""
    model: str | None = None
    """The model of --embedding-model or the loaded one, by name; left out, it is the former where there is one."""
    encoding_format: Literal["float", "base64"] = "float"
    """Numbers, or their 32-bit form in base64."""
    dimensions: int | None = Field(None, ge=1)
    """Only the model's own number of dimensions is possible."""
    user: Any = None
    """Accepted, without effect."""


class Embedding(BaseModel):
    """The vector of one text, of unit length."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


def router(app: App) -> APIRouter:
    """The route of embeddings."""
    routes = APIRouter(tags=["embeddings"], responses=REFUSALS, route_class=route_class(app.access))

    @routes.post("/v1/embeddings")
    def create_embeddings(body: Annotated[EmbeddingRequest, sent(EmbeddingRequest)]) -> EmbeddingList:
        """One vector for each text; a greater scalar product means more alike."""
        with _chosen(app, body.model) as model:
            texts, name = _texts(model, body), model.name
            counts = [len(model.tokenize(text, special=True)) for text in texts]
            if max(counts) > model.context_length:
                raise ContextTooLong(
                    f"A text has {max(counts)} tokens, and the context of {name} is {model.context_length}. Shorten it.",
                    param="input",
                )
            vectors = model.embed(texts)
        if body.dimensions is not None and body.dimensions != len(vectors[0]):
            raise UserError(f"The vectors of {name} have {len(vectors[0])} dimensions.", param="dimensions")
        packed = body.encoding_format == "base64"
        data = [Embedding(index=at, embedding=_pack(vector) if packed else vector) for at, vector in enumerate(vectors)]
        return EmbeddingList(model=name, data=data, usage=EmbeddingUsage(prompt_tokens=sum(counts), total_tokens=sum(counts)))

    return routes


class Embedder(Protocol):
    """What the two kinds of models that make vectors have in common."""

    @property
    def name(self) -> str: ...
    @property
    def context_length(self) -> int: ...
    def tokenize(self, text: str, *, special: bool = False) -> list[int]: ...
    def detokenize(self, tokens: Sequence[int]) -> str: ...
    def embed(self, texts: Sequence[str]) -> list[list[float]]: ...


@contextmanager
def _chosen(app: App, wanted: str | None) -> Iterator[Embedder]:
    own = app.options.embedding_model
    if own and (wanted is None or same_name(wanted, own)):
        yield app.embedding_model()
        return
    with app.manager.lease(wait=True) as model:
        if wanted is not None and not same_name(wanted, model.name):
            known = f"{model.name} is{f', and {own} is for embeddings' if own else ''}"
            raise ModelNotFound(f"The model {wanted} is not loaded; {known}.", param="model")
        if not model.capabilities.embeddings:
            raise UserError(f"{model.name} cannot make embeddings with its loader.", param="model")
        yield model


def _texts(model: Embedder, body: EmbeddingRequest) -> list[str]:
    given = body.input
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [model.detokenize([token for token in given if isinstance(token, int)])]
    return [part if isinstance(part, str) else model.detokenize(part) for part in given if not isinstance(part, int)]


def _pack(vector: list[float]) -> str:
    """32-bit little-endian numbers in base64, as the openai client unpacks them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
