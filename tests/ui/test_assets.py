"""What every visitor's browser fetches is made once, and fetched early."""

from __future__ import annotations

from typing import Any

from fastapi.responses import PlainTextResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.testclient import TestClient

from modules.settings.page import PageSettings
from modules.ui import page_head
from modules.ui.assets import KeptAssets


def site() -> tuple[TestClient, list[str]]:
    asked: list[str] = []

    def answer(request: Request) -> Any:
        asked.append(request.url.path)
        return PlainTextResponse("missing", 404) if "gone" in request.url.path else PlainTextResponse(request.url.path)

    return TestClient(KeptAssets(Starlette(routes=[Route("/{path:path}", answer)]))), asked


def test_a_script_of_gradio_is_made_once_for_each_encoding():
    client, asked = site()
    for _ in range(3):
        assert client.get("/assets/a-1.js", headers={"accept-encoding": "gzip"}).text == "/assets/a-1.js"
    client.get("/assets/a-1.js", headers={"accept-encoding": "br"})
    assert asked == ["/assets/a-1.js"] * 2


def test_nothing_else_is_kept():
    client, asked = site()
    for path in ("/chats/pulse", "/assets/gone.js", "/"):
        client.get(path)
        client.get(path)
    assert len(asked) == 6
    client.get("/assets/b.js", headers={"range": "bytes=0-1"})
    assert client.get("/assets/b.js").text == "/assets/b.js"


def test_the_scripts_of_the_chat_are_fetched_early_and_exist():
    head = page_head.head(PageSettings(), "chat", "").decode()
    names = [part.split('"')[0] for part in head.split('modulepreload" href="chats/static/')[1:]]
    assert {"start.js", "main.js", "api.js", "words.js"} <= set(names) and len(names) == len(set(names))
    assert all((page_head.STATIC / name).is_file() for name in names)
