"""A name for every request: the client's own, or one of ours, in the header x-request-id of the answer."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
_KEY = "textloom.request_id"
_WORD = re.compile(r"[!-~]{1,256}")


class RequestId:
    """ASGI middleware that writes the header, whatever the answer is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get(HEADER, "")
        name = scope[_KEY] = told if _WORD.fullmatch(told) else f"req_{uuid.uuid4().hex}"

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        await self._app(scope, receive, named)


def header_of(scope: Scope) -> dict[str, str]:
    """For an answer that is made outside of the middleware."""
    return {HEADER: scope[_KEY]} if _KEY in scope else {}
