"""What must be in the page before Gradio's own script runs: the words, the look, and the language and theme chosen here."""

from __future__ import annotations

import json

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.ui.words import script_words

# Gradio reads the language and the theme once, while its script starts, and puts `head=` into the page only later.
_HEAD = """
<link rel="stylesheet" href="chats/static/chat.css">
<script>
window.TEXTLOOM = %s;
(() => {
  const language = localStorage.getItem("textloom-language");
  if (language && language !== "auto") {
    Object.defineProperty(navigator, "language", {get: () => language});
    Object.defineProperty(navigator, "languages", {get: () => [language]});
  }
  const theme = localStorage.getItem("textloom-theme");
  if (theme && theme !== "auto") {
    const query = window.matchMedia.bind(window);
    const nothing = () => {};
    window.matchMedia = (text) => text.includes("prefers-color-scheme")
      ? {matches: text.includes(theme), media: text, addEventListener: nothing, removeEventListener: nothing,
         addListener: nothing, removeListener: nothing}
      : query(text);
  }
})();
</script>
"""


def head() -> bytes:
    words = json.dumps({"words": script_words()}, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return (_HEAD % words).encode()


class EarlyHead:
    """ASGI middleware: puts `head()` at the beginning of the page's <head>."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._head = head()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
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
                whole = whole.replace(b"<head>", b"<head>" + self._head, 1)
                if "content-length" in headers:
                    headers["content-length"] = str(len(whole))
            await send({**start, "headers": headers.raw})
            await send({"type": "http.response.body", "body": whole})

        await self._app(scope, receive, gather)
