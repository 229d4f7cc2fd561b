"""A server on a real port with a model whose reply the test decides."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from modules.access import make_access
from modules.api import errors
from modules.api import openai as protocol
from modules.errors import NotFound
from modules.generation.engine import Engine
from modules.generation.sampling import SamplingParams
from modules.settings.server import ServerOptions
from tests.fakes import EchoModel


@dataclass
class Server:
    """A running server, and how to talk to it."""

    url: str
    app: Any
    model: EchoModel

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

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


class _Named(dict):
    def read(self, name: str) -> Any:
        if name not in self:
            raise NotFound(f"There is no {name}.", param="name")
        return self[name]


def make_app(root: Path, model: EchoModel | None, options: dict[str, Any]) -> Any:
    server_options = ServerOptions(**options)
    app = SimpleNamespace(
        options=server_options,
        access=make_access(server_options, root),
        engine=Engine(),
        sampling=SamplingParams(),
        presets=_Named(warm=SamplingParams(temperature=1.5, top_k=40)),
        templates=_Named(plain="{% for m in messages %}{{ m.content }}{% endfor %}"),
        started=time.time(),
    )
    if model is not None:
        app.engine.replace(model.name, lambda report: model)
    return app


@contextlib.contextmanager
def servers(root: Path) -> Iterator[Callable[..., Server]]:
    """start(model, **options) starts a server; all of them end with the block."""
    running: list[tuple[uvicorn.Server, threading.Thread, Any]] = []

    def start(model: EchoModel | None = None, *, empty: bool = False, **options: Any) -> Server:
        fake = model or EchoModel()
        app = make_app(root, None if empty else fake, options)
        web = FastAPI()
        errors.install(web)
        web.include_router(protocol.router(app))
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(web, log_config=None, timeout_graceful_shutdown=1, ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        running.append((server, thread, app))
        return Server(f"http://127.0.0.1:{listener.getsockname()[1]}", app, fake)

    try:
        yield start
    finally:
        for server, thread, app in running:
            server.should_exit = True
            app.engine.close()
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
