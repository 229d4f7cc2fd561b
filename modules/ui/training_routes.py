"""The addresses that the Training tab's script calls, below chats/training."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from modules.app import App
from modules.ui import training_actions


class Resume(BaseModel):
    queue: bool = False


class Use(BaseModel):
    """checkpoint: empty takes the finished adapter."""

    checkpoint: str = ""


def router(app: App) -> APIRouter:
    """Whoever is let in may look; what changes something is for administrators."""
    routes = APIRouter(prefix="/training")

    def owner(request: Request) -> str:
        return request.state.owner

    def admin(request: Request) -> str:
        app.access.require_admin(owner(request))
        return owner(request)

    @routes.get("")
    def jobs(request: Request) -> dict[str, Any]:
        return training_actions.list_view(app, owner(request))

    @routes.get("/{id}")
    def job(id: str) -> dict[str, Any]:
        return training_actions.detail_view(app, id)

    @routes.post("/{id}/stop")
    def stop(request: Request, id: str) -> None:
        admin(request)
        app.training.stop(id)

    @routes.post("/{id}/kill")
    def stop_now(request: Request, id: str) -> None:
        admin(request)
        app.training.stop_now(id)

    @routes.post("/{id}/resume")
    def resume(request: Request, id: str, body: Resume) -> None:
        admin(request)
        app.training.resume(id, queue=body.queue)

    @routes.delete("/{id}")
    def delete(request: Request, id: str) -> None:
        admin(request)
        app.training.delete(id)

    @routes.post("/{id}/use")
    def use(request: Request, id: str, body: Use) -> dict[str, Any]:
        return training_actions.use_in_chat(app, admin(request), id, body.checkpoint)

    return routes
