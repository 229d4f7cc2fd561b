"""The addresses for characters, below chats/characters, and the name by which a user is called."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from modules.api.page.dependencies import Owner, body_of, download, picture
from modules.app import App
from modules.errors import NotFound
from modules.library import character_files
from modules.library.entries import read_bytes
from modules.library.modes import USER
from modules.library.trash import Undo
from modules.services import characters as character_actions
from modules.services import preferences
from modules.services.undo import character_name, told, undoable_character


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
    def characters(owner: Owner) -> dict[str, Any]:
        return {"characters": character_actions.list_view(app, owner), "name": preferences.user_name(app, owner)}

    @routes.post("/characters")
    def save(owner: Owner, body: CharacterForm) -> dict[str, Any]:
        values = body.model_dump(exclude={"replaces"})
        if body.replaces is None:
            return {"id": character_actions.save(app, owner, values, None)}
        with undoable_character(app, owner, body.replaces) as undo:
            id_ = character_actions.save(app, owner, values, body.replaces)
            if id_ != body.replaces:
                undo.note["renamed"] = [body.replaces, id_]
            undo.made = app.characters.files(owner, id_)
        return {"id": id_, **told(undo, "overwritten", name=character_name(app, owner, id_))}

    @routes.post("/characters/import")
    async def import_file(owner: Owner, request: Request, file: str = "file") -> dict[str, Any]:
        data = await body_of(request, character_files.LARGEST_FILE)
        return await asyncio.to_thread(character_actions.import_file, app, owner, data, file)

    @routes.get("/characters/{id}")
    def character(owner: Owner, id: str) -> dict[str, Any]:
        return character_actions.view(app, owner, id)

    @routes.delete("/characters/{id}")
    def delete(owner: Owner, id: str) -> dict[str, Any]:
        name = character_name(app, owner, id)
        with undoable_character(app, owner, id) as undo:
            app.characters.delete(owner, id)
        return told(undo, "character.deleted", name=name)

    @routes.get("/characters/{id}/picture")
    def show_picture(owner: Owner, id: str) -> Response:
        path = app.characters.picture(owner, id)
        if path is None:
            raise NotFound("This character has no picture.")
        return picture(character_files.portrait(read_bytes(path)), "image/png")

    @routes.post("/characters/{id}/picture")
    async def set_picture(owner: Owner, id: str, request: Request) -> dict[str, Any]:
        data = await body_of(request, character_files.LARGEST_FILE)

        def change() -> Undo:
            with undoable_character(app, owner, id) as undo:
                character_actions.set_picture(app, owner, id, data)
                undo.made = app.characters.files(owner, id)
            return undo

        return told(await asyncio.to_thread(change), "overwritten", name=character_name(app, owner, id))

    @routes.get("/characters/{id}/file")
    def export_file(owner: Owner, id: str, form: character_files.Form | None = None) -> Response:
        name, data, kind = character_actions.export_file(app, owner, id, form)
        return download(data, name, kind)

    @routes.post("/characters/{id}/chat")
    def begin_chat(owner: Owner, id: str, body: Beginning) -> dict[str, int]:
        return {"chat": character_actions.begin_chat(app, owner, id, body.mode, body.user).id}

    @routes.put("/name")
    def set_name(owner: Owner, body: Name) -> None:
        preferences.set_user_name(app, owner, body.name)

    return routes
