"""The addresses that the Models tab's script calls, below chats/."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from modules.api.page import model_views, views
from modules.app import App
from modules.library.remote_address import RemoteAddress
from modules.services import models as model_actions
from modules.services.undo import told


class Name(BaseModel):
    name: str


class Download(BaseModel):
    """quant: which of a repository's quantisations; empty chooses one."""

    name: str
    quant: str = ""


class AdapterChat(BaseModel):
    name: str
    strength: float = 1.0


class NewEngine(BaseModel):
    """model: its name there; empty takes the first one. api_key: where it asks for one. context_length: 0 asks the engine."""

    name: str
    base_url: str
    model: str = ""
    api_key: str = ""
    context_length: int = 0


def router(app: App) -> APIRouter:
    """Whoever is let in may look; what changes something is for administrators."""
    routes = APIRouter()

    def owner(request: Request) -> str:
        return request.state.owner

    @routes.get("/models")
    def models(request: Request) -> dict[str, Any]:
        return model_views.models_view(app, owner(request))

    @routes.post("/model")
    def load_model(request: Request, body: Name) -> None:
        model_actions.load_model(app, owner(request), body.name)

    @routes.post("/model/again")
    def reload_model(request: Request) -> None:
        model_actions.reload_model(app, owner(request))

    @routes.delete("/model")
    def unload_model(request: Request) -> None:
        model_actions.unload_model(app, owner(request))

    @routes.post("/adapters")
    def load_adapter(request: Request, body: Name) -> None:
        model_actions.load_adapter(app, owner(request), body.name)

    @routes.delete("/adapters/{name}")
    def unload_adapter(request: Request, name: str) -> None:
        model_actions.unload_adapter(app, owner(request), name)

    @routes.post("/adapters/chat")
    def chat_with_adapter(request: Request, body: AdapterChat) -> dict[str, int]:
        return {"chat": model_actions.chat_with_adapter(app, owner(request), body.name, body.strength)}

    @routes.post("/engines")
    def add_engine(request: Request, body: NewEngine) -> None:
        address = RemoteAddress(body.base_url.strip(), body.model.strip(), body.api_key.strip(), body.context_length or None)
        model_actions.add_engine(app, owner(request), body.name, address)

    @routes.delete("/engines/{name}")
    def remove_engine(request: Request, name: str) -> dict[str, Any]:
        return told(model_actions.remove_engine(app, owner(request), name), "engine.removed", name=name)

    @routes.post("/downloads")
    def start_download(request: Request, body: Download) -> dict[str, Any]:
        return views.download_view(model_actions.start_download(app, owner(request), body.name, body.quant))

    @routes.post("/starter")
    def get_starter(request: Request) -> dict[str, Any]:
        return views.download_view(model_actions.get_starter(app, owner(request)))

    @routes.delete("/downloads/{job_id}")
    def cancel_download(request: Request, job_id: int) -> None:
        app.access.require_admin(owner(request))
        app.downloads.cancel(job_id)

    return routes
