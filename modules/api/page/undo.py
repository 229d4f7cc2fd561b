"""Routes of what was deleted or overwritten: the list, putting back, forgetting."""

from __future__ import annotations

from typing import Any, Self

from fastapi import APIRouter
from pydantic import BaseModel

from modules.api.page.dependencies import CurrentWorkspace
from modules.library.trash import Undo


class ChangeNote(BaseModel):
    """What the page says of a change: the key of the words and what stands in them. undo: what takes it back, None for nothing."""

    words: str
    values: dict[str, Any]
    undo: str | None

    @classmethod
    def of(cls, undo: Undo, words: str, **values: object) -> Self:
        return cls(words=words, values=values, undo=undo.id)


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
