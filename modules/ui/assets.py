"""Gradio's scripts and styles, kept in memory as they were first sent: it would read and compress each again for every visitor."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.settings.paths import path_of

FOLDER = "/assets/"
"""Every name in it carries a hash of the content, so that what is kept is never out of date."""
MOST_BYTES = 32 * 1024**2


class KeptAssets:
    """ASGI middleware: answers from memory what has been asked for before with the same encodings."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kept: dict[tuple[str, str], list[Message]] = {}
        self._room = MOST_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope)
        headers = Headers(scope=scope) if path.startswith(FOLDER) else Headers({})
        if not path.startswith(FOLDER) or scope["method"] != "GET" or "range" in headers:
            await self._app(scope, receive, send)
            return
        key = path, headers.get("accept-encoding", "")
        if key in self._kept:
            for message in self._kept[key]:
                await send(message)
            return
        messages: list[Message] = []

        async def note(message: Message) -> None:
            messages.append(message)
            await send(message)

        await self._app(scope, receive, note)
        size = sum(len(message.get("body", b"")) for message in messages)
        whole = bool(messages) and messages[0].get("status") == 200 and not messages[-1].get("more_body")
        if whole and size <= self._room and key not in self._kept:
            self._kept[key] = messages
            self._room -= size
