"""The addresses for files: chats in and out, and the pictures of messages."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from modules.api.page.dependencies import CurrentWorkspace, body_of, download, file_of, picture
from modules.chats import images, incoming, transfer
from modules.i18n.sentences import said

MOST_TOLD = 1000
"""Entries of one kind that an answer names; of more it says how many there are."""


def router() -> APIRouter:
    """Each person's own chats and pictures only."""
    routes = APIRouter()

    @routes.post("/import")
    async def import_file(workspace: CurrentWorkspace, request: Request) -> Any:
        """What came in, the latest last; `left_out` what did not, and `remarks` what of a chat did not, each with its reason."""
        file = await file_of(request, incoming.LARGEST_ARCHIVE)

        def read() -> dict[str, Any]:
            with file:
                found = incoming.read_upload(file)
            made = transfer.import_chats(workspace.history, found.chats)
            return _told(found, made)

        return await asyncio.to_thread(read)

    @routes.get("/{chat_id}/export/{form}")
    def export_file(workspace: CurrentWorkspace, chat_id: int, form: str) -> Response:
        name, text = transfer.export_file(transfer.export_chat(workspace.history, chat_id), form)
        return download(text, name, "text/markdown" if name.endswith(".md") else "application/json")

    @routes.post("/pictures")
    async def add_picture(workspace: CurrentWorkspace, request: Request) -> dict[str, Any]:
        data = await body_of(request, images.LARGEST_FILE)
        kept = await asyncio.to_thread(workspace.history.pictures.add, data)
        return {"id": kept.id, "width": kept.width, "height": kept.height}

    @routes.get("/pictures/{picture_id}")
    def show_picture(workspace: CurrentWorkspace, picture_id: int, small: bool = False) -> Response:
        pictures = workspace.history.pictures
        return picture(*(pictures.thumbnail if small else pictures.data)(picture_id))

    return routes


def _told(found: incoming.Incoming, made: list[transfer.Imported]) -> dict[str, Any]:
    left_out = [
        {"number": entry.number, "title": entry.title, "file": entry.file, "why": said(entry.why.text)}
        for entry in found.left_out[:MOST_TOLD]
    ]
    remarks = [
        {"chat": chat.id, "number": entry.number, "title": entry.chat.title, "file": entry.file, "why": said(remark.text)}
        for entry, chat in zip(found.found, made, strict=True)
        for remark in chat.remarks
    ]
    return {
        "chats": [chat.id for chat in sorted(made, key=lambda chat: chat.rank)],
        "left_out": left_out,
        "remarks": remarks[:MOST_TOLD],
        "more": max(0, len(found.left_out) - MOST_TOLD) + max(0, len(remarks) - MOST_TOLD),
    }
