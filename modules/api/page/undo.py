"""Routes of what was deleted or overwritten: the list, putting back, forgetting."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from modules.api.page.dependencies import Owner
from modules.app import App
from modules.services.undo import restore, view


def router(app: App) -> APIRouter:
    """Part of the router of chats/: each sees what is theirs."""
    routes = APIRouter(prefix="/deleted")

    @routes.get("")
    def all_of(owner: Owner) -> list[dict[str, Any]]:
        return [view(kept) for kept in app.trash.all(owner)]

    @routes.post("/{id}/restore")
    def put_back(owner: Owner, id: str) -> dict[str, Any]:
        return restore(app, owner, id)

    @routes.delete("/{id}")
    def forget(owner: Owner, id: str) -> None:
        app.trash.forget(owner, id)

    return routes
