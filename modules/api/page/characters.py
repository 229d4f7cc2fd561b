"""The addresses for characters, below chats/characters, and the name by which a user is called."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from modules.api.page.dependencies import CurrentWorkspace, body_of, download, picture
from modules.app import App
from modules.errors import NotFound
from modules.library import character_files
from modules.library.entries import read_bytes
from modules.library.modes import USER
from modules.services.undo import told


class CharacterForm(BaseModel):
    """A character as it was written on the page; a field that is None stays. replaces: the id it had, None for a new one."""

    name: str
    user: str = ""
    context: str = ""
    greeting: str = ""
    example_dialogue: str = ""
    personality: str | None = None
    scenario: str | None = None
    system_prompt: str | None = None
    post_history: str | None = None
    replaces: str | None = None


class Beginning(BaseModel):
    """user: what the greeting calls a person without a name."""

    mode: str = "chat"
    user: str = Field(USER, max_length=40)


class Name(BaseModel):
    name: str


def router(app: App) -> APIRouter:
    """Everybody's characters and one's own."""
    routes = APIRouter()

    @routes.get("/characters")
    def characters(workspace: CurrentWorkspace) -> dict[str, Any]:
        return {"characters": workspace.characters.list_view(), "name": workspace.preferences.user_name}

    @routes.post("/characters")
    def save(workspace: CurrentWorkspace, body: CharacterForm) -> dict[str, Any]:
        values = body.model_dump(exclude={"replaces"})
        if body.replaces is None:
            return {"id": workspace.characters.create(values)}
        id_, undo = workspace.characters.overwrite(body.replaces, values)
        return {"id": id_, **told(undo, "overwritten", name=workspace.characters.name(id_))}

    @routes.post("/characters/import")
    async def import_file(workspace: CurrentWorkspace, request: Request, file: str = "file") -> dict[str, Any]:
        data = await body_of(request, character_files.LARGEST_FILE)
        return await asyncio.to_thread(workspace.characters.import_file, data, file)

    @routes.get("/characters/{id}")
    def character(workspace: CurrentWorkspace, id: str) -> dict[str, Any]:
        return workspace.characters.view(id)

    @routes.delete("/characters/{id}")
    def delete(workspace: CurrentWorkspace, id: str) -> dict[str, Any]:
        name = workspace.characters.name(id)
        return told(workspace.characters.delete(id), "character.deleted", name=name)

    @routes.get("/characters/{id}/picture")
    def show_picture(workspace: CurrentWorkspace, id: str) -> Response:
        path = app.characters.picture(workspace.owner, id)
        if path is None:
            raise NotFound("This character has no picture.")
        return picture(character_files.portrait(read_bytes(path)), "image/png")

    @routes.post("/characters/{id}/picture")
    async def set_picture(workspace: CurrentWorkspace, id: str, request: Request) -> dict[str, Any]:
        data = await body_of(request, character_files.LARGEST_FILE)
        undo = await asyncio.to_thread(workspace.characters.set_picture, id, data)
        return told(undo, "overwritten", name=workspace.characters.name(id))

    @routes.get("/characters/{id}/file")
    def export_file(workspace: CurrentWorkspace, id: str, form: character_files.Form | None = None) -> Response:
        name, data, kind = workspace.characters.export_file(id, form)
        return download(data, name, kind)

    @routes.post("/characters/{id}/chat")
    def begin_chat(workspace: CurrentWorkspace, id: str, body: Beginning) -> dict[str, int]:
        return {"chat": workspace.characters.begin_chat(id, body.mode, body.user).id}

    @routes.put("/name")
    def set_name(workspace: CurrentWorkspace, body: Name) -> None:
        workspace.preferences.set_user_name(body.name)

    return routes
