"""What must be in the page before Gradio's own script runs: the words, the look, and the language and theme chosen here."""

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

from modules.settings.page import PageSettings, Tab
from modules.ui.words import script_words

STATIC = Path(__file__).parent / "static"
# Gradio reads the language and the theme once, while its script starts, and puts `head=` into the page only later.
_HEAD = """
<link rel="stylesheet" href="chats/static/chat.css">
%s
<script>
window.TEXTLOOM = %s;
(() => {
  const {language, theme, first_tab} = window.TEXTLOOM.page;
  if (language !== "auto") {
    const name = language === "zh" ? "zh-CN" : language;
    Object.defineProperty(navigator, "language", {get: () => name});
    Object.defineProperty(navigator, "languages", {get: () => [name]});
  }
  if (theme !== "auto") {
    const query = window.matchMedia.bind(window);
    const nothing = () => {};
    window.matchMedia = (text) => text.includes("prefers-color-scheme")
      ? {matches: text.includes(theme), media: text, addEventListener: nothing, removeEventListener: nothing,
         addListener: nothing, removeListener: nothing}
      : query(text);
  }
  const linked = new URLSearchParams(location.search).has("chat");
  const wanted = sessionStorage.getItem("textloom-tab") ?? (linked ? "chat" : first_tab);
  // On narrow pages Gradio puts tabs into a menu, where they have their label alone; a hidden row has all labels in order.
  window.TEXTLOOM.openTab = (name) => {
    const tab = document.getElementById(`tab-${name}-button`);
    if (tab) return tab.click();
    const labels = document.querySelectorAll("#tl-tabs > .tab-wrapper > .visually-hidden > button");
    const label = labels[window.TEXTLOOM.tabs.indexOf(name)]?.textContent;
    [...document.querySelectorAll("#tl-tabs .overflow-dropdown > button")].find((button) => button.textContent === label)?.click();
  };
  const shown = () => document.querySelector("#tl-tabs [role=tab][aria-selected=true]")?.dataset.tabId;
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#tl-tabs > .tab-wrapper")) setTimeout(() => shown() && sessionStorage.setItem("textloom-tab", shown()), 50);
  });
  if (wanted === "%s") return;
  const until = Date.now() + 20000; // the buttons are there before they listen
  const timer = setInterval(() => {
    if (shown() === wanted || Date.now() > until) clearInterval(timer);
    else window.TEXTLOOM.openTab(wanted);
  }, 40);
})();
</script>
"""


def head(page: PageSettings, opens_on: str) -> bytes:
    """What is put into the page for a user with these settings; opens_on: the tab that Gradio shows by itself."""
    values = {"page": page.model_dump(mode="json"), "tabs": get_args(Tab)}
    settings = json.dumps(values, separators=(",", ":"))[:-1] + f",{_words()}}}"
    return (_HEAD % (_preloads(), settings, opens_on)).encode()


@lru_cache(maxsize=1)
def _preloads() -> str:
    """The chat view's script and all that it imports, fetched while Gradio's own script starts: a third of a second sooner."""
    found: list[str] = []
    waiting = ["main.js"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            waiting += re.findall(r'from "\./([\w.]+)"', (STATIC / name).read_text(encoding="utf-8"))
    return "".join(f'<link rel="modulepreload" href="chats/static/{name}">' for name in found)


@lru_cache(maxsize=1)
def _words() -> str:
    words = json.dumps({"words": script_words()}, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return words[1:-1]


class EarlyHead:
    """ASGI middleware: puts `head()` at the beginning of the page's <head>."""

    def __init__(self, app: ASGIApp, page_of: Callable[[HTTPConnection], PageSettings], opens_on: str) -> None:
        self._app = app
        self._page_of = page_of
        self._opens_on = opens_on

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
                own = await asyncio.to_thread(self._page_of, HTTPConnection(scope))
                whole = whole.replace(b"<head>", b"<head>" + head(own, self._opens_on), 1)
                if "content-length" in headers:
                    headers["content-length"] = str(len(whole))
            await send({**start, "headers": headers.raw})
            await send({"type": "http.response.body", "body": whole})

        await self._app(scope, receive, gather)
