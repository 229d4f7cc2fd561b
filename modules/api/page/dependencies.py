"""What the routes of the page have in common: who asks and from where, files that come in a body, and files that go out."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Annotated, BinaryIO
from urllib.parse import quote

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel

from modules.chats import files
from modules.errors import TooLarge
from modules.services.workspace import Workspace

IN_MEMORY = 16 * 1024**2


def _workspace(request: Request) -> Workspace:
    return request.state.workspace


CurrentWorkspace = Annotated[Workspace, Depends(_workspace)]
"""What the user who asks can do. The router's own dependency has made it."""


class AttachedFile(BaseModel):
    name: str
    text: str


class Said(BaseModel):
    """What somebody says, with the text files that belong to it."""

    content: str = ""
    files: list[AttachedFile] = []

    def whole(self) -> str:
        """The content of a message. Raises UserError for files that cannot be attached."""
        return files.joined([files.attached(file.name, file.text) for file in self.files], self.content)


async def body_of(request: Request, limit: int) -> bytes:
    """A file that was sent as it is. Raises TooLarge once it is larger than `limit` bytes."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limit:
            raise TooLarge(f"The file is too large: {limit // 1024**2} MB at most.")
    return bytes(data)


async def file_of(request: Request, limit: int) -> BinaryIO:
    """Like `body_of`, for what may be too large for memory: a file that vanishes when it is closed."""
    file: BinaryIO = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # type: ignore[assignment]  # noqa: SIM115
    try:
        async for piece in request.stream():
            await asyncio.to_thread(file.write, piece)
            if file.tell() > limit:
                raise TooLarge(f"The file is too large: {limit // 1024**2} MB at most.")
    except BaseException:
        file.close()
        raise
    return file


def download(data: bytes | str, name: str, kind: str) -> Response:
    """A file that the browser saves under `name`, and never opens."""
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return Response(data, media_type=kind, headers=headers)


def picture(data: bytes, kind: str) -> Response:
    """A picture that stays the same under its address, and can be nothing but a picture."""
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=3600",
    }
    return Response(data, media_type=kind, headers=headers)
