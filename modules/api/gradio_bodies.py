"""What Gradio's own routes are sent: JSON that can be read, or a refusal. They take it for granted, and break otherwise.

One of them, for its Python client, breaks at each name that it does not know: it is closed, as nothing here uses it.
"""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.api.errors import body_of
from modules.settings.paths import path_of
from modules.settings.texts import parse_json

PREFIX = "/gradio_api/"
CLOSED = "/gradio_api/call/v2/"


class ReadableJson:
    """ASGI middleware for the routes below PREFIX."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope)
        if path.startswith(CLOSED):
            await JSONResponse(body_of(f"There is no {path} here.", 404, code="unknown_url"), 404)(scope, receive, send)
            return
        if not path.startswith(PREFIX) or "json" not in Headers(scope=scope).get("content-type", ""):
            await self._app(scope, receive, send)
            return
        data = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client left
            data += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            if data:
                parse_json(data)
        except ValueError:
            await JSONResponse(body_of("The body is not valid JSON.", 400, code="invalid_json"), 400)(scope, receive, send)
            return
        unread = True

        async def again() -> Message:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": bytes(data), "more_body": False}
            return await receive()

        await self._app(scope, again, send)
