"""Routes of what was deleted or overwritten: the list, putting back, forgetting."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from modules.api.page.dependencies import CurrentWorkspace


def router() -> APIRouter:
    """Part of the router of chats/: each sees what is theirs."""
    routes = APIRouter(prefix="/deleted")

    @routes.get("")
    def all_of(workspace: CurrentWorkspace) -> list[dict[str, Any]]:
        return workspace.undo.all()

    @routes.post("/{id}/restore")
    def put_back(workspace: CurrentWorkspace, id: str) -> dict[str, Any]:
        return workspace.undo.restore(id)

    @routes.delete("/{id}")
    def forget(workspace: CurrentWorkspace, id: str) -> None:
        workspace.undo.forget(id)

    return routes
