"""GET /v1/models: the loaded model with its adapters, and the one for embeddings: what a request can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from modules.api.errors import REFUSALS, ModelNotFound
from modules.errors import NotFound
from modules.library.models import same_name

if TYPE_CHECKING:
    from modules.app import App


class ModelReply(BaseModel):
    """A name that requests can use. parent: the model that an adapter belongs to."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "textloom"
    parent: str | None = None
    context_length: int


class ModelList(BaseModel):
    """All of them; empty while no model is loaded."""

    object: Literal["list"] = "list"
    data: list[ModelReply]


def router(app: App) -> APIRouter:
    """The routes that list models."""
    routes = APIRouter(tags=["models"], responses=REFUSALS)

    def available() -> list[ModelReply]:
        model = app.manager.loaded or app.manager.unloaded
        if model is None:
            return for_embeddings()
        created, length = int(app.started), model.context_length
        base = ModelReply(id=model.name, created=created, context_length=length)
        return (
            [base]
            + [ModelReply(id=name, created=created, context_length=length, parent=model.name) for name in model.adapters]
            + for_embeddings()
        )

    def for_embeddings() -> list[ModelReply]:
        """The model of --embedding-model, loaded or not; none where there is no such folder."""
        try:
            spec = app.models.find(app.options.embedding_model) if app.options.embedding_model else None
        except NotFound:
            spec = None
        if spec is None:
            return []
        return [ModelReply(id=spec.name, created=int(app.started), context_length=spec.context_length or 0)]

    @routes.get("/v1/models")
    def list_models() -> ModelList:
        """The names that a request can use as its model."""
        return ModelList(data=available())

    @routes.get("/v1/models/{name:path}")
    def read_model(name: str) -> ModelReply:
        """One of them."""
        found = available()
        for entry in found:
            if same_name(entry.id, name):
                return entry
        loaded = f"Loaded is: {', '.join(entry.id for entry in found)}." if found else "No model is loaded."
        raise ModelNotFound(f"There is no loaded model {name}. {loaded}", param="model")

    return routes
