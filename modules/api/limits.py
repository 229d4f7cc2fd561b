"""No request is larger than its address allows: it is refused with 413, by what it promises or by what comes. Nor are its names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.api.errors import body_of, is_of_api
from modules.errors import TooLarge
from modules.settings.paths import path_of

MIB = 1024 * 1024
OF_THE_API = 64 * MIB
"""Bytes of one request; pictures are in it."""
OF_THE_REST = 8 * MIB
"""What people type on the page, what administers, and all else that has no limit of its own."""
_ADMINISTERS = re.compile(r"/v1/(models|internal/(stop|model|adapters|downloads?|training))\b.*|/api/v1/(model|stop-stream)")
LONGEST_NAME = 255
"""Bytes of one part of a path."""


class BodyLimit:
    """ASGI middleware. larger: for a pattern of whole paths, the bytes that they take: files, for the most part."""

    def __init__(self, app: ASGIApp, larger: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._larger = [(re.compile(pattern), limit) for pattern, limit in (larger or {}).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope)
        promised = Headers(scope=scope).get("content-length", "")
        if promised.isdigit() and int(promised) > limit:
            await _refuse(limit, scope, receive, send)
            return
        read, begun = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise _Beyond
            return message

        async def told(message: Message) -> None:
            nonlocal begun
            if read > limit and not begun:
                return  # whatever the route makes of half a body, the answer is that it was too large
            begun = True
            await send(message)

        with contextlib.suppress(_Beyond):
            await self._app(scope, counted, told)
        if read > limit and not begun:
            await _refuse(limit, scope, receive, send)

    def _limit(self, scope: Scope) -> int:
        path = path_of(scope)
        if is_of_api(scope) and not _ADMINISTERS.fullmatch(path):
            return OF_THE_API
        return next((limit for pattern, limit in self._larger if pattern.fullmatch(path)), OF_THE_REST)


class PathLimit:
    """ASGI middleware: what no file system can hold names nothing here, whatever a route would make of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _can_be(scope["path"]):
            body = body_of("There is nothing of this name here.", 404, code="unknown_url")
            await JSONResponse(body, 404)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _can_be(path: str) -> bool:
    return "\0" not in path and all(len(name.encode(errors="replace")) <= LONGEST_NAME for name in path.split("/"))


class _Beyond(Exception):
    """More has come than is allowed."""


async def _refuse(limit: int, scope: Scope, receive: Receive, send: Send) -> None:
    error = TooLarge(f"The request is larger than {limit // MIB} MiB. Send less at once.")
    await JSONResponse(body_of(error.message, error.status, code=error.code), error.status)(scope, receive, send)
