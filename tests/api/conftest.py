"""A server on a real port with a model whose reply the test decides."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from modules.app import App
from modules.settings.server import ServerOptions
from modules.web import build
from tests.conftest import ROOT
from tests.fakes import EchoModel


@dataclass
class Server:
    """A running server, and how to talk to it."""

    url: str
    app: App
    model: EchoModel
    clients: list[openai.OpenAI] = field(default_factory=list)
    """Closed with the server."""

    def client(self, key: str = "none") -> openai.OpenAI:
        self.clients.append(openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0))
        return self.clients[-1]

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **more)


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it became true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def make_app(root: Path, model: EchoModel | None, options: dict[str, Any]) -> App:
    """The real App in a folder of its own, with two presets and the templates of the project."""
    folder = root / secrets.token_hex(4)
    shutil.copytree(ROOT / "prompts", folder / "prompts")
    presets = folder / "presets"
    presets.mkdir()
    (presets / "warm.yaml").write_text("temperature: 1.5\ntop_k: 40\n", encoding="utf-8")
    app = App(folder, ServerOptions(nowebui=True, **options))
    if model is not None:
        app.manager.replace(model.name, lambda report: model)
    return app


class Served:
    """A web application on a port of its own. One that asks for no key serves one App after another: building it takes half a second."""

    def __init__(self, app: App) -> None:
        self._app, self._manager = app, app.manager
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(build(app), log_config=None, timeout_graceful_shutdown=1, ws="none"))
        self._on_finished = app.manager.on_finished
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def turn_to(self, app: App) -> None:
        """Serve `app`: what the routes hold is made the same as it."""
        app.manager.on_finished += self._on_finished
        self._manager.__dict__ = app.manager.__dict__
        self._app.__dict__ = app.__dict__

    def end(self, app: App | None = None) -> None:
        """End the server, and `app` meanwhile: streams that it holds open would be waited for."""
        self._server.should_exit = True
        if app is not None:
            app.close()
        self._thread.join(timeout=10)


Idle = dict[str, list[Served]]
"""Web applications that nobody uses, by the options of their App."""


@contextlib.contextmanager
def servers(root: Path, idle: Idle | None = None) -> Iterator[Callable[..., Server]]:
    """start(model, **options) starts a server, over a web application of `idle` where one fits; all of them end with the block."""
    running: list[tuple[Served, Server, str]] = []

    def start(model: EchoModel | None = None, *, empty: bool = False, **options: Any) -> Server:
        fake = model or EchoModel()
        app = make_app(root, None if empty else fake, options)
        secret = app.access.logins or app.access.api_key or app.access.admin_key
        key = "" if idle is None or secret else app.options.model_dump_json()
        if idle and idle.get(key):
            served = idle[key].pop()
            served.turn_to(app)
        else:
            served = Served(app)
        running.append((served, Server(served.url, app, fake), key))
        return running[-1][1]

    try:
        yield start
    finally:
        for served, server, key in running:
            for client in server.clients:
                client.close()
            if key and idle is not None:
                server.app.close()
                idle.setdefault(key, []).append(served)
            else:
                served.end(server.app)


@pytest.fixture(scope="module")
def idle() -> Iterator[Idle]:
    """What the tests of a module leave to each other; None in a module that counts from nothing."""
    kept: Idle = {}
    yield kept
    for served in (one for many in kept.values() for one in many):
        served.end()


@pytest.fixture
def serve(tmp_path: Path, idle: Idle | None) -> Iterator[Callable[..., Server]]:
    with servers(tmp_path, idle) as start:
        yield start


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tables of a module."""
    with servers(tmp_path_factory.mktemp("shared")) as start:
        yield start()
