"""What must be in the page before Gradio's own script runs: the words, the look, the choices of the user, and the chat view."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import get_args

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.i18n.catalogs import script_words
from modules.settings.page import PageSettings, Tab
from modules.settings.paths import path_of

STATIC = Path(__file__).parent / "static"
_HEAD = """
<meta name="color-scheme" content="%s">
<link rel="stylesheet" id="tl-style" href="chats/static/chat.css">
%s
<script>
window.TEXTLOOM = %s;
%s
</script>
<script type="module" src="chats/static/start.js"></script>
"""


def head(page: PageSettings, opens_on: str, stream: str) -> bytes:
    """What is put into the page for a user with these settings.

    opens_on: the tab that Gradio shows by itself; stream: pages with the same one share an event stream.
    """
    values = {"page": page.model_dump(mode="json"), "tabs": get_args(Tab), "opens_on": opens_on, "stream": stream}
    settings = json.dumps(values, separators=(",", ":"))[:-1] + f",{_words()}}}"
    scheme = "light dark" if page.theme == "auto" else page.theme  # of the empty page, before there is a style
    return (_HEAD % (scheme, _preloads(), settings, _script())).encode()


@lru_cache(maxsize=1)
def _script() -> str:
    return (STATIC / "bootstrap.js").read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _preloads() -> str:
    """The chat view's script and all that it imports, asked for at once rather than one after the other."""
    found: list[str] = []
    waiting = ["start.js"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            waiting += re.findall(r'(?:from|^import) "\./([\w.]+)"', (STATIC / name).read_text(encoding="utf-8"), re.MULTILINE)
    return "".join(f'<link rel="modulepreload" href="chats/static/{name}">' for name in found)


@lru_cache(maxsize=1)
def _words() -> str:
    words = json.dumps({"words": script_words()}, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return words[1:-1]


class EarlyHead:
    """ASGI middleware: puts `head()` at the beginning of the page's <head>."""

    def __init__(
        self,
        app: ASGIApp,
        page_of: Callable[[HTTPConnection], PageSettings],
        opens_on: str,
        stream_of: Callable[[HTTPConnection], str],
    ) -> None:
        self._app = app
        self._page_of = page_of
        self._opens_on = opens_on
        self._stream_of = stream_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope)
        if path not in ("", "/") or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def gather(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            headers = MutableHeaders(raw=start["headers"])
            whole = bytes(body)
            if headers.get("content-type", "").startswith("text/html"):
                connection = HTTPConnection(scope)
                own = await asyncio.to_thread(self._page_of, connection)
                stream = await asyncio.to_thread(self._stream_of, connection)
                whole = whole.replace(b"<head>", b"<head>" + head(own, self._opens_on, stream), 1)
                if "content-length" in headers:
                    headers["content-length"] = str(len(whole))
            await send({**start, "headers": headers.raw})
            await send({"type": "http.response.body", "body": whole})

        await self._app(scope, receive, gather)
