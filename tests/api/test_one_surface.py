"""Models and training by a session of the page and by a key of the API: one request, one answer, one effect, for administrators alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.testclient import TestClient

from modules.access import COOKIE
from modules.api import administration, common, errors, openai, training
from modules.api.page import chats
from modules.app import App
from modules.errors import Forbidden
from modules.library.remote_address import RemoteAddress
from modules.loaders.options import LoadOptions
from modules.services.workspace import Workspace
from modules.training import events
from modules.training.config import TrainingConfig
from modules.training.folder import Plan, RunFolder
from tests.fakes import EchoModel
from tests.in_process import make_app

RUN = "20260101-000000-facts"
Ask = Callable[..., Any]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """bob alone administers; the keys act under the name of ann, who does not."""
    logins = "ann:ann-password,bob:bob-password"
    made = make_app(tmp_path, EchoModel(), gradio_auth=logins, admin_users=("bob",), api_key="KEY", admin_key="ADMIN")
    folder = made.loras.folder / "pirate"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16}))
    (folder / "adapter_model.bin").write_bytes(b"weights")
    run = RunFolder(made.training.runs / RUN)
    run.create(TrainingConfig(name="facts", model="tiny", dataset="facts.json"), Plan("", "", "", "", ""))
    events.append_event(run.events, events.Done(1, "", "all steps are done"))
    yield made
    made.close()


@pytest.fixture
def asks(app: App) -> dict[str, Ask]:
    """How each of two administrators asks: (method, path, body) → answer."""
    web = FastAPI()
    errors.install(web)
    common.install(web, app)
    web.include_router(openai.router(app))
    web.include_router(chats.router(app))
    by = {
        "session": {"Cookie": f"{COOKIE}={app.access.log_in('bob', 'bob-password', 'test')}"},
        "key": {"Authorization": "Bearer ADMIN"},
    }

    def of(headers: dict[str, str]) -> Ask:
        client = TestClient(web, headers=headers, raise_server_exceptions=False)
        return lambda method, path, body=None: client.request(method, path, json=body)

    return {name: of(headers) for name, headers in by.items()}


BOTH = {
    # (by session, by key, body): what both have
    "load an adapter": ("/chats/adapters", "/v1/internal/adapters/load", {"name": "pirate"}),
    "load an adapter that is not there": ("/chats/adapters", "/v1/internal/adapters/load", {"name": "nosuch"}),
    "download what cannot be a name": ("/chats/downloads", "/v1/internal/download", {"model": ".."}),
    "stop a run": (f"/chats/training/{RUN}/stop", f"/v1/internal/training/jobs/{RUN}/stop", {}),
    "resume a run that is done": (f"/chats/training/{RUN}/resume", f"/v1/internal/training/jobs/{RUN}/resume", {"queue": True}),
    "resume a run that is not there": ("/chats/training/nosuch/resume", "/v1/internal/training/jobs/nosuch/resume", {}),
    "resume with a wrong value": (f"/chats/training/{RUN}/resume", f"/v1/internal/training/jobs/{RUN}/resume", {"queue": "x"}),
}


@pytest.mark.parametrize("request_", BOTH)
def test_a_session_and_a_key_get_the_same_answer_with_the_same_effect(app: App, asks: dict[str, Ask], request_: str) -> None:
    by_session, by_key, body = BOTH[request_]
    answers, effects = [], []
    for who, path in (("session", by_session), ("key", by_key)):
        answer = asks[who]("POST", path, body)
        answers.append((answer.status_code, answer.json()))
        model = app.manager.loaded
        assert model is not None
        effects.append((model.adapters, [job.state for job in app.training.list()], app.downloads.all()))
        for name in model.adapters:
            model.unload_adapter(name)
    assert answers[0] == answers[1] and effects[0] == effects[1]


def test_a_download_is_told_alike(app: App, asks: dict[str, Ask], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.downloads, "_run", lambda *_: None)
    by_session = asks["session"]("POST", "/chats/downloads", {"name": "org/name", "quant": " Q4_K_M "}).json()
    by_key = asks["key"]("POST", "/v1/internal/download", {"model": "org/name"}).json()
    assert by_session["id"] == by_key["id"] == 1 and len(app.downloads.all()) == 1, "the second joins the first"
    assert {name: by_session[name] for name in by_key} == by_key
    assert by_key.keys() == administration.DownloadReply.model_fields.keys(), "the page's own fields stay with the page"


def test_the_size_of_a_download_may_be_unknown(app: App, asks: dict[str, Ask], monkeypatch: pytest.MonkeyPatch) -> None:
    from modules.library.fetching import DownloadProgress

    monkeypatch.setattr(app.downloads, "_run", lambda *_: None)
    job = app.downloads.start("org/name")
    app.downloads._change(job, state="running", progress=DownloadProgress(5, None, 0, 1, 0.0))
    answer = asks["key"]("GET", f"/v1/internal/downloads/{job.id}")
    assert (answer.status_code, answer.json()["total"]) == (200, None)


def test_a_run_that_either_deletes_can_be_put_back(app: App, asks: dict[str, Ask]) -> None:
    assert asks["key"]("DELETE", f"/v1/internal/training/jobs/{RUN}").json() == {"deleted": RUN}
    assert app.training.list() == []
    (kept,) = app.trash.all("ann")
    app.trash.restore("ann", kept.id)
    note = asks["session"]("DELETE", f"/chats/training/{RUN}").json()
    assert app.training.list() == [] and note["words"] == "training.deleted" and note["undo"] == app.trash.all("bob")[0].id


USES: dict[str, Callable[[Workspace], object]] = {
    "load": lambda by: by.models.load("far"),
    "begin to load": lambda by: by.models.begin_load("far"),
    "load again": lambda by: by.models.begin_reload(),
    "unload": lambda by: by.models.unload(),
    "stop all replies": lambda by: by.models.stop_replies(),
    "save options": lambda by: by.models.save_options("far", LoadOptions()),
    "load an adapter": lambda by: by.models.load_adapter("pirate"),
    "unload an adapter": lambda by: by.models.unload_adapter("pirate"),
    "download": lambda by: by.models.start_download("org/name"),
    "fetch the starter": lambda by: by.models.fetch_starter(),
    "cancel a download": lambda by: by.models.cancel_download(1),
    "add an engine": lambda by: by.models.add_engine("far", RemoteAddress("http://127.0.0.1:9/v1")),
    "remove an engine": lambda by: by.models.remove_engine("far"),
    "start a run": lambda by: by.training.start(TrainingConfig()),
    "stop a run": lambda by: by.training.stop(RUN),
    "resume a run": lambda by: by.training.resume(RUN),
    "delete a run": lambda by: by.training.delete(RUN),
    "merge": lambda by: by.training.merge(RUN, "merged"),
    "use an adapter": lambda by: by.training.use_adapter(RUN, ""),
    "use in a chat": lambda by: by.training.use_in_chat(RUN),
    "convert a data set": lambda by: by.datasets.convert("facts.json"),
    "add a file": lambda by: by.datasets.add_file(Path("facts.json")),
    "add a text": lambda by: by.datasets.add_text("facts", "{}"),
}


@pytest.mark.parametrize("use", USES)
def test_a_service_refuses_whoever_is_no_administrator(app: App, use: str) -> None:
    with pytest.raises(Forbidden):
        USES[use](Workspace(app, "ann"))
    assert app.manager.loaded is not None and app.downloads.all() == [] and len(app.training.list()) == 1


@pytest.mark.parametrize("by", [("bob", False), ("ann", True)], ids=["by login", "by the admin key"])
def test_a_service_serves_administrators(app: App, by: tuple[str, bool]) -> None:
    Workspace(app, *by).models.load_adapter("pirate")
    assert app.manager.loaded is not None and app.manager.loaded.adapters == ("pirate",)


@pytest.mark.parametrize("router", [administration.page_router(), training.page_router()], ids=["models", "training"])
def test_every_answer_to_the_page_has_a_type(router: Any) -> None:
    for route in router.routes:
        assert isinstance(route, APIRoute)
        kind = route.endpoint.__annotations__["return"]
        told = route.response_model or NoneType
        assert kind == "StreamingResponse" or (isinstance(told, type) and issubclass(told, BaseModel | str | NoneType)), (
            route.path
        )
    assert StreamingResponse is training.StreamingResponse
