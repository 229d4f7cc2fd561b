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
        app.engine.replace(model.name, lambda report: model)
    return app


@contextlib.contextmanager
def servers(root: Path) -> Iterator[Callable[..., Server]]:
    """start(model, **options) starts a server; all of them end with the block."""
    running: list[tuple[uvicorn.Server, threading.Thread, Server]] = []

    def start(model: EchoModel | None = None, *, empty: bool = False, **options: Any) -> Server:
        fake = model or EchoModel()
        app = make_app(root, None if empty else fake, options)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(build(app), log_config=None, timeout_graceful_shutdown=1, ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        running.append((server, thread, Server(f"http://127.0.0.1:{listener.getsockname()[1]}", app, fake)))
        return running[-1][2]

    try:
        yield start
    finally:
        for server, thread, served in running:
            for client in served.clients:
                client.close()
            server.should_exit = True
            served.app.close()
            thread.join(timeout=10)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with servers(tmp_path) as start:
        yield start


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tables of a module."""
    with servers(tmp_path_factory.mktemp("shared")) as start:
        yield start()
