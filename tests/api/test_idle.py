"""A model that was unloaded because nobody used it is there again for the next request, as it was."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from modules.api import streaming
from modules.errors import Unavailable
from modules.generation.types import GenerationRequest
from modules.loaders import choose
from tests.api.conftest import make_app, wait_until
from tests.fakes import EchoModel, loaded_in, stream_of
from tests.serving import Server as OwnProcess

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


class SlowLoad:
    """A load that lasts until the test lets it go on."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.loads = 0
        self.failure = failure
        self.go_on = threading.Event()

    def __call__(self, report):
        self.loads += 1
        report("reading the weights")
        assert self.go_on.wait(20)
        if self.failure is not None:
            raise self.failure
        return EchoModel()


@pytest.mark.slow
def test_requests_of_all_kinds_wait_for_one_load_and_nobody_else_does(serve):
    server, load = serve(), SlowLoad()
    engine = server.app.manager
    assert engine.unload_idle(load) and engine.loaded is None
    assert httpx.get(server.url + "/v1/models").json()["data"][0]["id"] == "echo"
    bodies = [
        *(("/v1/chat/completions", CHAT),) * 50,
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/v1/internal/chat-prompt", CHAT),
        ("/v1/internal/token-count", {"text": "hi"}),
    ]
    with ThreadPoolExecutor(len(bodies)) as clients:
        answers = [clients.submit(server.post, *body) for body in bodies]
        assert wait_until(lambda: engine.status.state == "loading" and load.loads == 1)
        time.sleep(0.3)
        health = httpx.get(server.url + "/health", timeout=2)
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        assert server.post("/v1/internal/stop", {}).status_code == 200  # a route that needs a thread
        load.go_on.set()
        assert [answer.result().status_code for answer in answers] == [200] * len(bodies)
    assert load.loads == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_stream_says_what_is_being_loaded_while_it_waits(serve, monkeypatch, path):
    monkeypatch.setattr(streaming, "FIRST_EVENT_SECONDS", 0.05)
    server, load = serve(), SlowLoad()
    server.app.manager.unload_idle(load)
    body = {"chat/completions": CHAT, "completions": {"prompt": "hi"}, "responses": {"input": "hi"}}[path[4:]]
    with httpx.stream("POST", server.url + path, json={**body, "stream": True}, timeout=20) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith(": loading echo ")
        load.go_on.set()
        rest = list(lines)
    assert any("hi" in line for line in rest if line.startswith("data: "))


def test_a_client_that_leaves_while_it_waits_leaves_no_reply(serve, monkeypatch):
    monkeypatch.setattr(streaming, "FIRST_EVENT_SECONDS", 0.05)
    server, load = serve(), SlowLoad()
    server.app.manager.unload_idle(load)
    with httpx.stream("POST", server.url + "/v1/chat/completions", json={**CHAT, "stream": True}, timeout=20) as answer:
        next(answer.iter_lines())
    load.go_on.set()
    assert wait_until(lambda: server.app.manager.loaded is not None)
    time.sleep(0.2)
    assert loaded_in(server.app.manager).requests == []


def test_a_failure_to_load_is_told_to_each_and_the_next_tries_again(serve, monkeypatch):
    monkeypatch.setattr(streaming, "FIRST_EVENT_SECONDS", 0.05)
    server, load = serve(), SlowLoad(Unavailable("The memory is full."))
    server.app.manager.unload_idle(load)
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(server.post, "/v1/chat/completions", CHAT) for _ in range(2)]
        streamed = clients.submit(server.post, "/v1/chat/completions", {**CHAT, "stream": True})
        assert wait_until(lambda: load.loads == 1)
        time.sleep(0.3)
        load.go_on.set()
        for answer in answers:
            assert answer.result().status_code == 503
            assert answer.result().json()["error"]["message"] == "The memory is full."
        error = [line for line in streamed.result().text.splitlines() if line.startswith("data: ")]
        assert json.loads(error[0][6:])["error"]["message"] == "The memory is full."
    load.failure = None
    assert server.post("/v1/chat/completions", CHAT).status_code == 200
    assert load.loads == 2


def test_strangers_and_bad_bodies_wake_nobody(serve):
    server = serve(api_key="key")
    server.app.manager.unload_idle(SlowLoad())
    assert server.post("/v1/chat/completions", CHAT).status_code == 401
    key = {"Authorization": "Bearer key"}
    assert server.post("/v1/chat/completions", {"messages": []}, headers=key).status_code == 400
    assert server.app.manager.status.state == "asleep"


def test_a_model_in_use_does_not_sleep(tmp_path):
    app = make_app(tmp_path, EchoModel(lambda request: "x" * 10_000, pace=0.01), {})
    with stream_of(app.manager, GenerationRequest("go")):
        app.manager.last_used -= 100
        assert not app.manager.unload_idle(SlowLoad(), idle=10)
    assert not app.manager.unload_idle(SlowLoad(), idle=10)  # its end counts as use
    app.manager.last_used -= 100
    assert app.manager.unload_idle(SlowLoad(), idle=10)
    app.close()


def test_what_a_user_unloaded_or_replaced_stays_so(tmp_path):
    app = make_app(tmp_path, EchoModel(), {})
    app.manager.unload_idle(SlowLoad())
    app.manager.replace("other", lambda report: EchoModel(name="other"))
    assert loaded_in(app.manager).name == "other" and app.manager.unloaded is None
    app.manager.unload_idle(SlowLoad())
    app.manager.unload()
    with pytest.raises(Unavailable, match="Models tab"):
        stream_of(app.manager, GenerationRequest("x"))
    app.close()


def test_it_comes_back_as_it_was_loaded_with_the_adapters_that_are_still_there(tmp_path, monkeypatch):
    app = make_app(tmp_path, None, {})
    for name in ("pirate", "lost"):
        folder = app.loras.folder / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "base", "r": 8}')
        (folder / "adapter_model.bin").write_bytes(b"weights")
    monkeypatch.setattr(app.models, "find", lambda name: name)
    seen = []
    monkeypatch.setattr(choose, "load", lambda spec, options, report: seen.append((spec, options)) or EchoModel())
    app.last_load = ("echo", app.loading)
    app.manager.replace("echo", lambda report: EchoModel())
    for name in ("pirate", "lost"):
        app.load_adapter(name)
    app.unload_idle_model()
    assert app.manager.unloaded is not None and app.manager.unloaded.adapters == ("pirate", "lost")
    shutil.rmtree(app.loras.folder / "lost")
    with stream_of(app.manager, GenerationRequest("x", adapter="pirate")):
        assert (seen, loaded_in(app.manager).adapters) == ([("echo", app.loading)], ("pirate",))
    app.close()


@pytest.mark.slow
def test_the_server_unloads_an_idle_model_and_every_api_and_the_page_bring_it_back(tiny_llama_folder: Path, tmp_path: Path):
    models = tmp_path / "models"
    shutil.copytree(tiny_llama_folder, models / "tiny")
    arguments = ["--model-dir", str(models), "--model", "tiny", "--idle-timeout", "0.02", "--max-tokens", "5"]
    with OwnProcess(arguments, data=tmp_path / "data") as server, server.client() as client:

        def slept() -> bool:
            return client.get("/v1/internal/model/info").json()["state"] == "asleep"

        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/v1/embeddings", {"input": "hi"}),
            ("/chats/send", {"content": "hi"}),
            ("/chats/writing/count", {"text": "hi"}),
        ):
            assert wait_until(slept, 30), "".join(server.lines)
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            assert client.get("/health").json() == {"status": "ok", "model": "tiny", "error": None}
        assert "nobody has used it for 0.02 minutes" in "".join(server.lines)
