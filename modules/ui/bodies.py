"""What the routes of the page have in common: who asks and from where, files that come in a body, and files that go out."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Header, Query, Request
from fastapi.responses import Response

from modules.errors import UserError


def _owner(request: Request) -> str:
    return request.state.owner


Owner = Annotated[str, Depends(_owner)]
"""Who asks. The router's own dependency has checked it before."""


def _start(position: Annotated[int, Query(alias="from")] = 0, last_event_id: Annotated[int | None, Header()] = None) -> int:
    return position if last_event_id is None else last_event_id


Start = Annotated[int, Depends(_start)]
"""What a reader of events has already: as it was asked for, or, where the line broke, what came last."""


async def body_of(request: Request, limit: int) -> bytes:
    """A file that was sent as it is. Raises UserError once it is larger than `limit` bytes."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > limit:
            raise UserError(f"The file is too large: {limit // 1024**2} MB at most.")
    return bytes(data)


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
