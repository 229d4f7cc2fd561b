"""What the Models tab's script can ask for: adapters, remote engines, loading again, and who may."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.app import App
from modules.errors import UserError
from modules.loaders import choose
from modules.loaders.options import LoadOptions
from modules.settings.server import ServerOptions
from tests.api.page.test_chats import Page
from tests.fakes import EchoModel, loaded_in
from tests.in_process import make_app


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    made = make_app(tmp_path, EchoModel(name="echo"))
    yield made
    made.close()


@pytest.fixture
def page(app: App) -> Page:
    return Page(app)


def write_adapter(app: App, name: str) -> None:
    folder = app.loras.folder / name
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 8, "lora_alpha": 16}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.bin").write_bytes(b"weights")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_adapters_are_loaded_used_in_a_new_chat_and_unloaded(app: App, page: Page) -> None:
    write_adapter(app, "pirate")
    (shown,) = page.ok("GET", "/models")["adapters"]
    assert (shown["name"], shown["base"], shown["rank"], shown["loaded"]) == ("pirate", "base", 8, False)
    page.ok("POST", "/adapters", {"name": "pirate"})
    assert page.ok("GET", "/models")["adapters"][0]["loaded"]
    assert page.refused("POST", "/adapters", {"name": "pirate"})[0] == 409
    chat = page.ok("POST", "/adapters/chat", {"name": "pirate", "strength": 1.5})["chat"]
    settings = page.view(chat)["settings"]
    assert (settings["adapter"], settings["adapter_strength"]) == ("pirate", 1.5)
    assert page.refused("POST", "/adapters/chat", {"name": "pirate", "strength": 3})[0] == 400
    page.ok("DELETE", "/adapters/pirate")
    assert page.refused("DELETE", "/adapters/pirate")[0] == 404
    assert page.refused("POST", "/adapters/chat", {"name": "pirate"})[0] == 404
    assert "nosuch" in page.refused("POST", "/adapters", {"name": "nosuch"})[1]


def test_an_adapter_that_cannot_be_used_is_refused_with_its_reason(app: App, page: Page) -> None:
    (app.loras.folder / "half").mkdir(parents=True)
    (app.loras.folder / "half" / "adapter_config.json").write_text("{}")
    assert page.ok("GET", "/models")["adapters"][0]["problem"]
    assert "no weights" in page.refused("POST", "/adapters", {"name": "half"})[1]


def test_a_remote_engine_is_added_listed_and_removed(app: App, page: Page) -> None:
    body = {"name": "far", "base_url": "http://127.0.0.1:9/v1", "api_key": "secret", "context_length": 2048}
    page.ok("POST", "/engines", body)
    view = page.ok("GET", "/models")
    assert view["engines"] == [{"name": "far", "address": "http://127.0.0.1:9/v1"}]
    assert [(model["name"], model["loader"], model["context"]) for model in view["models"]] == [("far", "remote", 2048)]
    file = app.models.folder / "far.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret" in file.read_text() and "secret" not in json.dumps(view)
    assert page.refused("POST", "/engines", body)[0] == 409
    page.ok("DELETE", "/engines/far")
    assert page.ok("GET", "/models")["engines"] == []


@pytest.mark.parametrize("name", ["../far", "", "a/b", "config-user"])
def test_an_engine_is_only_written_beside_the_models(app: App, page: Page, name: str) -> None:
    page.refused("POST", "/engines", {"name": name, "base_url": "http://127.0.0.1:9/v1"})
    assert list(app.models.folder.rglob("*.yaml")) == []
    assert not (app.models.folder.parent / "far.yaml").exists()


def test_an_address_must_be_one(page: Page) -> None:
    assert "http://" in page.refused("POST", "/engines", {"name": "far", "base_url": "file:///etc/passwd"})[1]


def test_only_engines_are_removed(app: App, page: Page) -> None:
    (app.models.folder / "model").mkdir()
    assert page.refused("DELETE", "/engines/model")[0] == 404
    assert (app.models.folder / "model").exists()


def test_a_model_is_loaded_again_as_it_was_with_its_adapters(app: App, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(app, "pirate")
    (app.models.folder / "far.yaml").write_text("base_url: http://127.0.0.1:9/v1\n")
    loads: list[LoadOptions] = []

    def load(spec: Any, options: LoadOptions, report: Callable[[str], None]) -> EchoModel:
        loads.append(options)
        report("Loading far: 5 %")
        report("Loading far: 10 %")
        report("far answers")
        return EchoModel(name=spec.name)

    monkeypatch.setattr(choose, "load", load)
    assert page.refused("POST", "/model/again")[0] == 400
    app.load_model("far", LoadOptions(ctx_size=512))
    app.load_adapter("pirate")
    first = loaded_in(app.manager)
    page.ok("POST", "/model/again")
    until(lambda: app.manager.loaded not in (None, first) and loaded_in(app.manager).adapters == ("pirate",))
    assert [options.ctx_size for options in loads] == [512, 512]
    assert page.ok("GET", "/models")["engine"]["log"] == ["Loading far: 10 %", "far answers"]
    page.ok("DELETE", "/model")
    assert app.manager.loaded is None


def test_a_load_that_fails_leaves_its_reason_and_what_was_said(app: App, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    (app.models.folder / "far.yaml").write_text("base_url: http://127.0.0.1:9/v1\n")

    def load(spec: Any, options: LoadOptions, report: Callable[[str], None]) -> EchoModel:
        report("asking")
        raise UserError("It does not answer.")

    monkeypatch.setattr(choose, "load", load)
    page.ok("POST", "/model", {"name": "far"})
    until(lambda: app.manager.status.error is not None)
    engine = page.ok("GET", "/models")["engine"]
    assert (engine["state"], engine["error"], engine["log"]) == ("empty", "It does not answer.", ["asking"])


def test_a_broken_settings_file_is_named_and_the_list_stays(app: App, page: Page) -> None:
    (app.models.folder / "far.yaml").write_text("base_url: http://127.0.0.1:9/v1\n")
    (app.models.folder / "config-user.yaml").write_text("far: [")
    (model,) = page.ok("GET", "/models")["models"]
    assert "config-user.yaml" in model["problem"]
    assert "config-user.yaml" in page.refused("POST", "/model", {"name": "far"})[1]


def test_an_adapter_that_fails_at_the_start_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(tmp_path, ServerOptions(model="far", lora=("nosuch", "pirate")))
    try:
        write_adapter(app, "pirate")
        (app.models.folder / "far.yaml").write_text("base_url: http://127.0.0.1:9/v1\n")
        monkeypatch.setattr(choose, "load", lambda spec, options, report: EchoModel(name=spec.name))
        app.load_at_start()
        assert loaded_in(app.manager).adapters == ("pirate",)
    finally:
        app.close()


def test_everyone_may_look_and_only_administrators_change(tmp_path: Path) -> None:
    logins = "anna:anna-password,bert:bert-password"
    app = make_app(tmp_path, EchoModel(name="echo"), gradio_auth=logins, admin_users=("anna",))
    try:
        (app.models.folder / "far.yaml").write_text("base_url: http://10.1.2.3:9/v1\n")
        write_adapter(app, "pirate")
        bert = Page(app, "bert")
        view = bert.ok("GET", "/models")
        assert not view["admin"] and "10.1.2.3" not in json.dumps(view)
        for method, path, body in (
            ("POST", "/model", {"name": "far"}),
            ("POST", "/model/again", None),
            ("DELETE", "/model", None),
            ("POST", "/adapters", {"name": "pirate"}),
            ("DELETE", "/adapters/pirate", None),
            ("POST", "/engines", {"name": "new", "base_url": "http://127.0.0.1:9/v1"}),
            ("DELETE", "/engines/far", None),
            ("POST", "/downloads", {"name": "starter"}),
            ("POST", "/starter", {}),
        ):
            assert bert.refused(method, path, body)[0] in (401, 403), path
        assert Page(app, "anna").ok("GET", "/models")["admin"]
        assert app.manager.loaded is not None and (app.models.folder / "far.yaml").exists()
    finally:
        app.close()


@pytest.mark.slow
def test_the_memory_of_the_replaced_model_counts_as_free(app: App, tiny_llama_folder: Path) -> None:
    from modules.library import memory
    from modules.services.models import Models, wish_of

    (app.models.folder / "tiny").symlink_to(tiny_llama_folder)
    assert Models(app, "local").freed() == 0
    spec = replace(app.models.find("tiny"), name="tiny")
    app.last_load = "echo", LoadOptions()
    assert Models(app, "local").freed() == 0  # no file of that name
    app.manager.replace("tiny", lambda report: EchoModel(name="tiny"))
    app.last_load = "tiny", LoadOptions()
    assert Models(app, "local").freed() == memory.memory_need(spec, wish_of(LoadOptions())).total > 0
