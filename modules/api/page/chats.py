"""The addresses that the chat view's script calls: actions as JSON, replies as server-sent events, the script itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field

from modules.api import administration, training
from modules.api.guard import READS
from modules.api.page import characters, events, files, messages, notebook, undo, views
from modules.api.page.changes import ACTED
from modules.api.page.dependencies import CurrentWorkspace, Said, download, file_of
from modules.api.page.topics import Topics
from modules.app import App
from modules.chats import images, incoming
from modules.chats.chat_table import PAGE_OF_CHATS
from modules.chats.records import Place
from modules.errors import NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.library import character_files
from modules.services import backup
from modules.services.undo import told
from modules.services.workspace import Workspace
from modules.settings.texts import check_text

STATIC = Path(__file__).parents[2] / "ui" / "static"
LARGER_BODIES = {
    "/chats/everything": backup.LARGEST,
    "/chats/import": incoming.LARGEST_ARCHIVE,
    "/chats/pictures": images.LARGEST_FILE,
    "/chats/characters/import|/chats/characters/[^/]+/picture": character_files.LARGEST_FILE,
}
"""Patterns of paths that take files, with the largest body of each."""
MOST_CHATS = 1000
"""How many chats one answer lists at most."""


class View(BaseModel):
    """What the browser has: message id → time of its last change. limit: how many of the last messages it shows."""

    known: dict[int, float] = {}
    limit: int = views.PAGE_OF_MESSAGES


class NewMessage(Said):
    """chat: None begins a new one, with `settings`. after: the message that this one follows."""

    chat: int | None = None
    after: int | None = None
    settings: dict[str, Any] | None = None
    pictures: list[int] = Field(default_factory=list)


class Edit(BaseModel):
    content: str
    answer: bool = True


class ChatChange(BaseModel):
    title: str | None = None
    pinned: bool | None = None
    settings: dict[str, Any] | None = None


class Name(BaseModel):
    name: str


class Sampling(BaseModel):
    """Values of settings; the others are neutral."""

    values: dict[str, Any]


def place_of(text: str) -> Place:
    """A place in the list from "pinned,updated,id". Raises UserError."""
    match = re.fullmatch(r"([01]),(\d{1,12}(?:\.\d{1,20})?),(\d{1,18})", text)
    if match is None:
        raise UserError(
            'The place in the list is told as "pinned,updated,id", as the last chat before it has them.', param="after"
        )
    pinned, updated, id_ = match.groups()
    return Place(pinned == "1", float(updated), int(id_))


def router(app: App) -> APIRouter:
    """All addresses under chats/. Each asks who is there, and shows only what is theirs."""

    def let_in(request: Request) -> None:
        request.state.owner = app.access.require_user(request)
        request.state.workspace = Workspace(app, request.state.owner)

    async def of_whole_characters(request: Request) -> None:
        check_text(getattr(request, "_json", None))  # what FastAPI has read; a route that takes a file reads it itself

    topics = Topics(app)

    async def tell_streams(request: Request) -> AsyncIterator[None]:
        yield
        if request.method not in READS:
            topics.changes.notify(ACTED)

    checks = [Depends(let_in), Depends(of_whole_characters), Depends(tell_streams)]
    routes = APIRouter(prefix="/chats", include_in_schema=False, dependencies=checks)
    routes.include_router(events.router(app, topics))
    routes.include_router(administration.page_router())
    routes.include_router(training.page_router())
    routes.include_router(messages.router(app))
    routes.include_router(characters.router(app))
    routes.include_router(files.router())
    routes.include_router(notebook.router())
    routes.include_router(undo.router())

    # --- the list and the chats

    @routes.get("")
    def list_chats(
        workspace: CurrentWorkspace,
        search: str = "",
        limit: Annotated[int, Query(ge=1, le=MOST_CHATS)] = PAGE_OF_CHATS,
        after: str = "",
    ) -> list[dict[str, Any]]:
        """A page of the list. after: the place of the last chat of the page before, as "pinned,updated,id"."""
        return views.list_view(workspace.history.chats.page(search, limit, place_of(after) if after else None))

    @routes.get("/pulse")
    def pulse(workspace: CurrentWorkspace, chat: int | None = None) -> dict[str, Any]:
        return views.pulse_view(workspace, chat)

    @routes.get("/menus")
    def menus(workspace: CurrentWorkspace) -> dict[str, Any]:
        return views.menus_view(workspace)

    @routes.get("/server")
    def server(workspace: CurrentWorkspace) -> dict[str, Any]:
        return views.server_view(workspace)

    @routes.post("/preset")
    def choose_preset(workspace: CurrentWorkspace, body: Name) -> dict[str, Any] | None:
        before = workspace.preferences.sampling
        workspace.preferences.choose_preset(body.name)
        return workspace.undo.told_settings(before)

    @routes.put("/sampling")
    def set_sampling(workspace: CurrentWorkspace, body: Sampling) -> None:
        workspace.preferences.set_sampling(SamplingParams.read(body.values), None)

    @routes.patch("/page")
    def change_page(workspace: CurrentWorkspace, body: dict[str, Any]) -> dict[str, Any]:
        return workspace.preferences.set_page(body).model_dump(mode="json")

    @routes.post("/defaults")
    def save_as_default(workspace: CurrentWorkspace) -> dict[str, Any]:
        with workspace.undo.defaults() as change:
            file = workspace.preferences.save_as_default()
        return told(change, "session.defaults.saved", file=file)

    @routes.get("/everything")
    def export_everything(workspace: CurrentWorkspace) -> Response:
        return download(workspace.backup.export(), "textloom.zip", "application/zip")

    @routes.post("/everything")
    async def import_everything(workspace: CurrentWorkspace, request: Request) -> dict[str, Any]:
        before = workspace.preferences.sampling
        with await file_of(request, backup.LARGEST) as file:
            found = await asyncio.to_thread(workspace.backup.read, file)
        return {**found, "replaced": workspace.undo.told_settings(before)}

    @routes.get("/static/{name:path}")
    def static(name: str) -> FileResponse:
        path = (STATIC / name).resolve()
        if not path.is_relative_to(STATIC) or not path.is_file():
            raise NotFound("There is no such file.")
        kind = "text/javascript" if path.suffix == ".js" else None
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "no-cache"})

    @routes.post("/{chat_id}/view")
    def view(workspace: CurrentWorkspace, chat_id: int, body: View) -> dict[str, Any]:
        return views.chat_view(workspace, chat_id, body.known, max(1, min(body.limit, 100_000)))

    @routes.patch("/{chat_id}")
    def change(workspace: CurrentWorkspace, chat_id: int, body: ChatChange) -> None:
        if body.title is not None:
            workspace.history.chats.rename(chat_id, body.title)
        if body.pinned is not None:
            workspace.history.chats.pin(chat_id, body.pinned)
        if body.settings is not None:
            workspace.chats.change_settings(chat_id, body.settings)

    @routes.delete("/{chat_id}")
    def delete(workspace: CurrentWorkspace, chat_id: int) -> None:
        workspace.chats.delete(chat_id)

    @routes.post("/{chat_id}/restore")
    def restore(workspace: CurrentWorkspace, chat_id: int) -> None:
        workspace.history.chats.restore(chat_id)

    # --- messages

    @routes.post("/send")
    def send(workspace: CurrentWorkspace, body: NewMessage) -> dict[str, int]:
        if body.chat is None:
            reply = workspace.chats.begin(body.whole(), body.settings or {}, body.pictures)
        else:
            reply = workspace.chats.send(body.chat, body.whole(), body.after, body.pictures)
        return {"chat": reply.chat_id, "reply": reply.id}

    @routes.get("/messages/{message_id}")
    def source(workspace: CurrentWorkspace, message_id: int) -> dict[str, Any]:
        return views.source_view(workspace.history.messages.get(message_id))

    @routes.post("/messages/{message_id}/regenerate")
    def regenerate(workspace: CurrentWorkspace, message_id: int) -> dict[str, int]:
        return {"reply": workspace.chats.regenerate(message_id).id}

    @routes.post("/messages/{message_id}/continue")
    def continue_reply(workspace: CurrentWorkspace, message_id: int) -> dict[str, int]:
        return {"reply": workspace.chats.continue_reply(message_id).id}

    @routes.post("/messages/{message_id}/edit")
    def edit(workspace: CurrentWorkspace, message_id: int, body: Edit) -> dict[str, int]:
        return {"reply": workspace.chats.edit(message_id, body.content, answer=body.answer).id}

    @routes.post("/messages/{message_id}/select")
    def select(workspace: CurrentWorkspace, message_id: int) -> None:
        workspace.history.messages.select(message_id)

    @routes.post("/messages/{message_id}/branch")
    def branch(workspace: CurrentWorkspace, message_id: int) -> dict[str, int]:
        return {"id": workspace.history.messages.branch_off(message_id).id}

    @routes.delete("/messages/{message_id}")
    def delete_message(workspace: CurrentWorkspace, message_id: int) -> None:
        workspace.chats.delete_message(message_id)

    @routes.post("/messages/{message_id}/restore")
    def restore_message(workspace: CurrentWorkspace, message_id: int) -> None:
        workspace.history.messages.restore_branch(message_id)

    # --- replies

    @routes.post("/replies/{message_id}/stop")
    def stop(workspace: CurrentWorkspace, message_id: int) -> dict[str, bool]:
        return {"stopped": workspace.chats.stop(message_id)}

    return routes
