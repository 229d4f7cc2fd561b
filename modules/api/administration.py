"""What administrators do below /v1/internal: load and unload models and adapters, stop replies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from modules.api.auth import key_of_admin
from modules.api.common import Body, sent
from modules.api.errors import REFUSALS
from modules.api.internal import Health
from modules.loaders.options import LoadOptions

if TYPE_CHECKING:
    from modules.app import App


class LoadBody(Body):
    """The model to load, and how."""

    model: str
    """Its name, as /v1/internal/model/list has it."""
    options: LoadOptions = LoadOptions()
    """What is set here goes over what was saved for this model."""
    stop_running: bool = False
    """Stop the replies that are being made instead of waiting for their end."""


class UnloadBody(Body):
    """How to unload."""

    stop_running: bool = False
    """Stop the replies that are being made instead of waiting for their end."""


class AdapterBody(Body):
    """An adapter."""

    name: str
    """Its name, as /v1/internal/adapters/list has it."""


class Stopped(BaseModel):
    """How many replies were stopped."""

    stopped: int


def router(app: App) -> APIRouter:
    """The routes for administrators."""

    guards = [Depends(key_of_admin(app.access))]
    routes = APIRouter(prefix="/v1/internal", tags=["administration"], responses=REFUSALS, dependencies=guards)

    @routes.post("/stop")
    def stop_all_replies() -> Stopped:
        """Stop every reply that is being made, of all users."""
        return Stopped(stopped=app.engine.stop_all())

    @routes.post("/model/load")
    def load_model(body: Annotated[LoadBody, sent(LoadBody)]) -> Health:
        """Replace the loaded model; answers when the new one is ready."""
        app.load_model(body.model, body.options if body.options.model_fields_set else None, stop_running=body.stop_running)
        return Health()

    @routes.post("/model/unload")
    def unload_model(body: Annotated[UnloadBody | None, sent(UnloadBody | None)]) -> Health:
        """Give the model's memory back."""
        app.engine.unload(stop_running=body.stop_running if body else False)
        return Health()

    @routes.post("/adapters/load")
    def load_adapter(body: Annotated[AdapterBody, sent(AdapterBody)]) -> Health:
        """Make an adapter available to requests."""
        app.load_adapter(body.name)
        return Health()

    @routes.post("/adapters/unload")
    def unload_adapter(body: Annotated[AdapterBody, sent(AdapterBody)]) -> Health:
        """Take an adapter out of memory."""
        app.unload_adapter(body.name)
        return Health()

    return routes
