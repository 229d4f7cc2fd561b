"""The addresses for files: chats in and out, and the pictures of messages."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from modules.app import App
from modules.chats import pictures, transfer
from modules.ui.bodies import Owner, body_of, download, picture


def router(app: App) -> APIRouter:
    """Each person's own chats and pictures only."""
    routes = APIRouter()

    @routes.post("/import")
    async def import_file(owner: Owner, request: Request) -> dict[str, list[int]]:
        data = await body_of(request, transfer.LARGEST_FILE)

        def read() -> list[int]:
            made = transfer.import_chats(app.store, app.pictures, owner, transfer.read_file(data))
            return [chat.id for chat in made]

        return {"chats": await asyncio.to_thread(read)}

    @routes.get("/{chat_id}/export/{form}")
    def export_file(owner: Owner, chat_id: int, form: str) -> Response:
        name, text = transfer.export_file(transfer.export_chat(app.store, app.pictures, owner, chat_id), form)
        return download(text, name, "text/markdown" if name.endswith(".md") else "application/json")

    @routes.post("/pictures")
    async def add_picture(owner: Owner, request: Request) -> dict[str, Any]:
        data = await body_of(request, pictures.LARGEST_FILE)
        kept = await asyncio.to_thread(app.pictures.add, owner, data)
        return {"id": kept.id, "width": kept.width, "height": kept.height}

    @routes.get("/pictures/{picture_id}")
    def show_picture(owner: Owner, picture_id: int, small: bool = False) -> Response:
        return picture(*(app.pictures.thumbnail if small else app.pictures.data)(owner, picture_id))

    return routes
