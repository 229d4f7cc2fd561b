"""Every address of the server × who asks: nobody, a wrong key, the users' key, the admin key, and another user's cookie.

And every one that changes something × a page of another site, in the browser of somebody who may do it.

A route without a row fails `test_every_route_has_a_row`: decide who may use it, and write it down here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from modules.access import COOKIE
from modules.api.legacy import routes as legacy_routes
from tests.fakes import EchoModel, loaded_in
from tests.in_process import make_app

SECRET = "the password of the cellar is mandarin"
CALLERS = ("nobody", "wrong key", "user key", "admin key", "bob's cookie")
OPEN = (200, 200, 200, 200, 200)
USERS = (401, 401, 200, 200, 200)
"""Everyone who may use the API; another user's cookie is such a user."""


def admins(status: int) -> tuple[int, ...]:
    """Only the admin key gets so far as `status`."""
    return (401, 401, 403, status, 403)


HI = {"messages": [{"role": "user", "content": "hi"}]}
TABLE: dict[tuple[str, str], tuple[Any, tuple[int, ...]]] = {
    # (method, address): (body, the status for each of CALLERS)
    ("GET", "/health"): (None, OPEN),
    ("GET", "/openapi.json"): (None, OPEN),
    ("GET", "/v1/docs"): (None, OPEN),
    ("GET", "/docs/oauth2-redirect"): (None, (401, 401, 401, 401, 200)),
    ("GET", "/login"): (None, (200, 200, 200, 200, 303)),
    ("POST", "/login"): (None, (401, 401, 401, 401, 401)),
    ("POST", "/logout"): (None, (401, 401, 401, 401, 303)),
    ("GET", "/metrics"): (None, USERS),
    ("POST", "/v1/chat/completions"): (HI, USERS),
    ("POST", "/v1/completions"): ({"prompt": "x"}, USERS),
    ("POST", "/v1/responses"): ({"input": "x"}, USERS),
    ("POST", "/v1/responses/input_tokens"): ({"input": "x"}, USERS),
    ("POST", "/v1/embeddings"): ({"input": "x"}, USERS),
    ("GET", "/v1/models"): (None, USERS),
    ("GET", "/v1/models/echo"): (None, USERS),
    ("GET", "/v1/nothing"): (None, (401, 401, 404, 404, 404)),
    ("POST", "/v1/internal/token-count"): ({"text": "x"}, USERS),
    ("POST", "/v1/internal/encode"): ({"text": "x"}, USERS),
    ("POST", "/v1/internal/decode"): ({"tokens": [97]}, USERS),
    ("POST", "/v1/internal/logits"): ({"prompt": "x"}, USERS),
    ("POST", "/v1/internal/chat-prompt"): (HI, USERS),
    ("GET", "/v1/internal/health"): (None, USERS),
    ("GET", "/v1/internal/model/info"): (None, USERS),
    ("GET", "/v1/internal/model/list"): (None, USERS),
    ("GET", "/v1/internal/adapters/list"): (None, USERS),
    ("POST", "/v1/internal/stop"): ({}, admins(200)),
    ("POST", "/v1/internal/model/load"): ({"model": "ghost"}, admins(404)),
    ("POST", "/v1/internal/model/unload"): ({}, admins(200)),
    ("POST", "/v1/internal/adapters/load"): ({"name": "ghost"}, admins(404)),
    ("POST", "/v1/internal/adapters/unload"): ({"name": "ghost"}, admins(404)),
    ("POST", "/v1/internal/download"): ({"model": ".."}, admins(400)),
    ("GET", "/v1/internal/downloads"): (None, admins(200)),
    ("GET", "/v1/internal/downloads/9"): (None, admins(404)),
    ("POST", "/v1/internal/downloads/9/cancel"): (None, admins(404)),
    ("GET", "/v1/internal/training/jobs"): (None, admins(200)),
    ("POST", "/v1/internal/training/jobs"): ({"config": {"base_model": "ghost"}}, admins(400)),
    ("GET", "/v1/internal/training/jobs/ghost"): (None, admins(404)),
    ("GET", "/v1/internal/training/jobs/ghost/events"): (None, admins(404)),
    ("POST", "/v1/internal/training/jobs/ghost/stop"): (None, admins(404)),
    ("POST", "/v1/internal/training/jobs/ghost/resume"): (None, admins(404)),
    ("DELETE", "/v1/internal/training/jobs/ghost"): (None, admins(404)),
}
OF_2023: dict[tuple[str, str], tuple[Any, tuple[int, ...]]] = {
    ("POST", "/api/v1/generate"): ({"prompt": "x"}, USERS),
    ("POST", "/api/v1/chat"): ({"user_input": "x"}, USERS),
    ("POST", "/api/v1/stop-stream"): ({}, USERS),
    ("POST", "/api/v1/token-count"): ({"prompt": "x"}, USERS),
    ("GET", "/api/v1/model"): (None, USERS),
    ("POST", "/api/v1/model"): ({"action": "load", "model_name": "ghost"}, admins(404)),
}
SOCKETS = {"/api/v1/stream": {"prompt": "x"}, "/api/v1/chat-stream": {"user_input": "x"}}
"""Websockets: those who may use the API get a reply, the others a refusal and a closed line."""
PAGE = "/chats"
"""Below this stand the addresses of the page's script: a login's cookie opens them, a key never does."""
OF_ADMINS = {
    ("POST", "/chats/defaults"),
    ("POST", "/chats/model"),
    ("DELETE", "/chats/model"),
    ("POST", "/chats/model/again"),
    ("POST", "/chats/adapters"),
    ("DELETE", "/chats/adapters/{name}"),
    ("POST", "/chats/engines"),
    ("DELETE", "/chats/engines/{name}"),
    ("POST", "/chats/downloads"),
    ("POST", "/chats/starter"),
    ("DELETE", "/chats/downloads/{job_id}"),
    ("POST", "/chats/training/{id}/stop"),
    ("POST", "/chats/training/{id}/kill"),
    ("POST", "/chats/training/{id}/resume"),
    ("DELETE", "/chats/training/{id}"),
    ("POST", "/chats/training/{id}/use"),
}
"""What of the page another user may not do at all."""
ALIKE = {"{name:path}": "echo", "{number}": "9", "{job}": "ghost", "{path:path}": "nothing"}
ANSWERS_ALL = ("/v1/{path:path}",)
"""One row stands for all methods."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The whole application with two logins, both keys, and a chat of ann's."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from modules import web

    root = tmp_path_factory.mktemp("access")
    app = make_app(root, EchoModel(), gradio_auth="ann:one,bob:two", api_key="KEY", admin_key="ADMIN")
    chat = app.store.for_owner("ann").chats.create(title=SECRET)
    said = app.store.for_owner("ann").messages.add(chat.id, None, "user", SECRET)
    reply = app.store.for_owner("ann").messages.add(chat.id, said.id, "assistant", SECRET)

    async def build() -> Any:
        """Inside a loop, because Gradio makes many of its own where none runs, and never closes them."""
        return web.build(app)

    yield {"app": app, "web": asyncio.run(build()), "chat": chat.id, "said": said.id, "reply": reply.id}
    app.close()


def headers(app: Any) -> dict[str, dict[str, str]]:
    cookies = {user: app.access.log_in(user, password, user) for user, password in (("ann", "one"), ("bob", "two"))}
    return {
        "nobody": {},
        "wrong key": {"Authorization": "Bearer guess"},
        "user key": {"Authorization": "Bearer KEY"},
        "admin key": {"Authorization": "Bearer ADMIN"},
        "bob's cookie": {"Cookie": f"{COOKIE}={cookies['bob']}"},
        "ann's cookie": {"Cookie": f"{COOKIE}={cookies['ann']}"},
    }


def routes_of(application: Any) -> set[tuple[str, str]]:
    """(method, path) of every route, those of included routers too; no HEAD, no websockets, no mounted applications."""
    found = set()
    for route in iter_route_contexts(application.routes):
        path = getattr(route, "path", "")
        for method in getattr(route, "methods", None) or ():
            if method != "HEAD":
                found.add(("GET" if path in ANSWERS_ALL else method, path))
    return found


def filled(path: str) -> str:
    for pattern, value in ALIKE.items():
        path = path.replace(pattern, value)
    return path


def test_every_route_has_a_row(site):
    api = {(method, filled(path)) for method, path in routes_of(site["web"]) if not path.startswith(PAGE)}
    assert api == set(TABLE)
    assert routes_of(legacy_routes.build(site["app"])) == set(OF_2023)


def sockets_of(application: Any) -> set[str]:
    """Every websocket, those of included routers too. (On the port of the page uvicorn serves none at all.)"""
    found = iter_route_contexts(application.routes)
    return {str(context.path) for context in found if isinstance(context.original_route, WebSocketRoute)}


def test_every_websocket_has_a_row(site):
    assert sockets_of(site["web"]) == set()
    assert sockets_of(legacy_routes.build(site["app"])) == set(SOCKETS)


@pytest.mark.parametrize("path", SOCKETS)
@pytest.mark.parametrize("caller", [*CALLERS, "ann's cookie"])
def test_websockets_answer_those_who_may_use_the_api(site, caller, path):
    client = TestClient(legacy_routes.build(site["app"]))
    before = len(loaded_in(site["app"].manager).requests)
    with client.websocket_connect(f"ws://localhost{path}", headers=headers(site["app"])[caller]) as socket:
        if caller in ("nobody", "wrong key"):
            assert socket.receive_json()["error"]["code"] == "invalid_api_key"
            with pytest.raises(WebSocketDisconnect):
                socket.receive_json()
            assert len(loaded_in(site["app"].manager).requests) == before
        else:
            socket.send_json(SOCKETS[path])
            events = [socket.receive_json()]
            while events[-1]["event"] != "stream_end":
                events.append(socket.receive_json())
            assert len(loaded_in(site["app"].manager).requests) == before + 1


@pytest.mark.parametrize("caller", CALLERS)
def test_each_caller_gets_what_the_table_says(site, caller):
    place = CALLERS.index(caller)
    told, expected = {}, {}
    for table, application in ((TABLE, site["web"]), (OF_2023, legacy_routes.build(site["app"]))):
        with_no_jar = TestClient(
            application, base_url="http://localhost", raise_server_exceptions=False, follow_redirects=False
        )
        for (method, path), (body, statuses) in table.items():
            sent = headers(site["app"])[caller]
            answer = with_no_jar.request(method, path, json=body, headers=sent)
            told[method, path], expected[method, path] = answer.status_code, statuses[place]
            if path == "/v1/internal/model/unload" and answer.status_code == 200:
                site["app"].manager.replace("echo", lambda report: EchoModel())
    assert told == expected


def body_for(site: dict[str, Any]) -> dict[str, Any]:
    """Everything that any of the page's bodies asks for, about ann's chat."""
    return {
        "chat": site["chat"],
        "after": site["reply"],
        "rejected": site["reply"],
        "content": "x",
        "name": "x",
        "title": "x",
        "on": True,
        "stretch": 0,
        "index": 0,
        "token": 1,
        "alternative": 0,
        "columns": [{}, {}],
        "kind": "good",
        "base_url": "http://localhost/v1",
    }


def page_address(site: dict[str, Any], path: str) -> str:
    for name in ("message_id", "old", "new"):
        path = path.replace(f"{{{name}}}", str(site["reply"]))
    path = path.replace("{chat_id}", str(site["chat"])).replace("{name:path}", "main.js").replace("{kind}", "good")
    return path.replace("{job_id}", "9").replace("{id}", "ghost") + "?address=http://localhost"


def test_the_page_is_closed_to_strangers_and_to_keys(site):
    client = TestClient(site["web"], base_url="http://localhost", raise_server_exceptions=False)
    for caller in CALLERS[:4]:
        for method, path in sorted(routes_of(site["web"])):
            if path.startswith(PAGE):
                sent = headers(site["app"])[caller]
                answer = client.request(method, page_address(site, path), json=body_for(site), headers=sent)
                assert answer.status_code == 401, (caller, method, path)
                assert SECRET not in answer.text


def test_another_user_reads_and_changes_nothing_of_anns(site):
    """By any of the page's addresses, with ann's numbers in the path and in the body."""
    app = site["app"]
    before = [node.message for node in app.store.for_owner("ann").messages.path(site["chat"])]
    client = TestClient(site["web"], base_url="http://localhost", raise_server_exceptions=False)
    sent = headers(app)["bob's cookie"]
    told = {}
    for method, path in sorted(routes_of(site["web"])):
        if not path.startswith(PAGE):
            continue
        answer = client.request(method, page_address(site, path), json=body_for(site), headers=sent)
        told[method, path] = answer.status_code
        assert SECRET not in answer.text, (method, path)
        if (method, path) in OF_ADMINS:
            assert answer.status_code == 403, (method, path)
        elif "{chat_id}" in path or "message_id}" in path:
            assert answer.status_code == 404, (method, path, answer.text)
        assert answer.status_code < 500, (method, path, answer.text)
    assert told["POST", "/chats/send"] == 404
    assert set(told) >= OF_ADMINS
    assert [node.message for node in app.store.for_owner("ann").messages.path(site["chat"])] == before
    assert SECRET in client.post(f"/chats/{site['chat']}/view", json={}, headers=headers(app)["ann's cookie"]).text


def test_what_gradio_serves_is_closed_to_strangers_and_to_keys(site):
    """Its own routes stand at /: files, uploads, the queue, the configuration."""
    (mounted,) = [route.app for route in site["web"].routes if type(route).__name__ == "Mount"]
    ours = {path for _, path in TABLE}
    addresses = {(method, path) for method, path in routes_of(mounted) if path.rstrip("/") not in ours}
    assert len(addresses) > 20
    client = TestClient(site["web"], base_url="http://localhost", raise_server_exceptions=False, follow_redirects=False)
    for caller in CALLERS[:4]:
        for method, path in sorted(addresses):
            address = path.replace("{", "").replace("}", "").replace(":path", "") or "/"
            answer = client.request(method, address, headers=headers(site["app"])[caller])
            assert answer.status_code == 401, (caller, method, path)


# --- pages of other sites

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TEXT = {"Content-Type": "text/plain"}
OTHER_SITES: dict[str, dict[str, str]] = {
    "a form": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Origin": "https://evil.example", **FORM},
    "a form of an old browser": {"Origin": "https://evil.example", **FORM},
    "a form of a sandboxed frame": {"Origin": "null", **FORM},
    "another server of this machine": {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000", **TEXT},
    "another server of this machine, on plain http": {"Origin": "http://localhost:3000", **TEXT},
    "a script without CORS": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", **TEXT},
    "a script that knows how a proxy speaks": {"Origin": "https://evil.example", "Authorization": "Basic eDp5", **TEXT},
}
"""What browsers send along with requests that a page needs no leave for."""
BODIES = {"/v1/internal/model/load": b'{"model": "ghost"}'}


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The whole application as most people run it: nobody is asked for anything."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from modules import web

    app = make_app(tmp_path_factory.mktemp("open"), EchoModel())
    chat = app.store.for_owner("local").chats.create(title=SECRET)
    said = app.store.for_owner("local").messages.add(chat.id, None, "user", SECRET)
    reply = app.store.for_owner("local").messages.add(chat.id, said.id, "assistant", SECRET)

    async def build() -> Any:
        return web.build(app)

    yield {"app": app, "web": asyncio.run(build()), "chat": chat.id, "said": said.id, "reply": reply.id}
    app.close()


def state(site: dict[str, Any]) -> Any:
    """What there is to change: the model and its replies, the chats, and every file beside the database."""
    app = site["app"]
    files = {
        str(path): path.stat().st_mtime_ns for path in app.root.rglob("*") if path.is_file() and "sqlite3" not in path.name
    }
    with app.store.database.reading() as db:
        return id(app.manager.loaded), len(loaded_in(app.manager).requests), list(db.iterdump()), files


def acting(site: dict[str, Any]) -> list[tuple[Any, str, str]]:
    """(application, method, address) of all that is no plain reading: ours, Gradio's, and those of 2023."""
    (mounted,) = [route.app for route in site["web"].routes if type(route).__name__ == "Mount"]
    old = legacy_routes.build(site["app"])
    found = [(site["web"], *route) for route in routes_of(site["web"]) | routes_of(mounted)]
    found += [(site["web"], "POST", path) for path in ANSWERS_ALL]
    found += [(old, *route) for route in routes_of(old)]
    return [
        (application, method, page_address(site, filled(path)).replace("{", "").replace("}", ""))
        for application, method, path in found
        if method not in ("GET", "OPTIONS")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", OTHER_SITES)
def test_a_page_of_another_site_changes_nothing(open_site, how):
    before = state(open_site)
    addresses = acting(open_site)
    assert len(addresses) >= 100
    for application, method, address in addresses:
        client = TestClient(application, base_url="http://localhost", raise_server_exceptions=False, follow_redirects=False)
        for body in (b"", b"model=ghost", BODIES.get(address.partition("?")[0], b"{}")):
            answer = client.request(method, address, content=body, headers=OTHER_SITES[how])
            assert answer.status_code == 403, (method, address, answer.text)
            assert answer.json()["error"]["code"] == "cross_site"
            assert not any(name.startswith("access-control") for name in answer.headers)
    assert state(open_site) == before


@pytest.mark.slow
@pytest.mark.parametrize("how", OTHER_SITES)
def test_nor_does_it_with_the_cookie_of_an_administrator(site, how):
    before = state(site)
    for application, method, address in acting(site):
        client = TestClient(application, base_url="http://localhost", raise_server_exceptions=False, follow_redirects=False)
        answer = client.request(method, address, headers={**OTHER_SITES[how], **headers(site["app"])["ann's cookie"]})
        assert answer.status_code == 403, (method, address, answer.text)
    assert state(site) == before


@pytest.mark.parametrize("path", SOCKETS)
@pytest.mark.parametrize("how", OTHER_SITES)
def test_a_page_of_another_site_opens_no_websocket(open_site, how, path):
    client = TestClient(legacy_routes.build(open_site["app"]))
    before = state(open_site)
    with pytest.raises(WebSocketDenialResponse) as denied:
        with client.websocket_connect(f"ws://localhost{path}", headers=OTHER_SITES[how]):
            pass
    assert denied.value.status_code == 403
    assert state(open_site) == before


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"},
        {"Origin": "http://localhost"},
        {"Authorization": "Bearer none", "Origin": "app://desktop.client", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_programs_and_the_own_page_are_no_other_site(open_site, how):
    client = TestClient(open_site["web"], base_url="http://localhost", raise_server_exceptions=False)
    assert client.post("/v1/internal/stop", headers=how).status_code == 200
    assert client.post("/v1/chat/completions", json=HI, headers=how).status_code == 200
    socket_client = TestClient(legacy_routes.build(open_site["app"]))
    with socket_client.websocket_connect("ws://localhost/api/v1/stream", headers=how) as socket:
        socket.send_json({"prompt": "x"})
        assert socket.receive_json()["event"] == "text_stream"
