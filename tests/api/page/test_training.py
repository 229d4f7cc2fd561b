"""What the Training tab is told: curves that a browser can draw, previews without a hole, and who may do what."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from modules.access import COOKIE
from modules.api import errors
from modules.api.page import chats
from modules.app import App
from modules.services.training import POINTS, thinned
from modules.training import events
from modules.training.checkpoints import new_checkpoint
from modules.training.config import TrainingConfig
from modules.training.folder import Plan, RunFolder
from modules.training.samples import load_tokenizer
from modules.ui.data_view import first_html, histogram, rows_html
from tests.fakes import EchoModel, loaded_in
from tests.in_process import ROOT, make_app


@pytest.fixture
def app(tmp_path: Path, tiny_llama_folder: Path) -> Iterator[App]:
    for name in ("formats", "recipes", "datasets"):
        shutil.copytree(ROOT / "training" / name, tmp_path / "training" / name)
    shutil.copytree(tiny_llama_folder, tmp_path / "models" / "tiny-llama")
    app = make_app(tmp_path, EchoModel(), gradio_auth="ann:ann-password,bob:bob-password")
    yield app
    app.close()


def browser(app: App, user: str) -> TestClient:
    web = FastAPI()
    errors.install(web)
    web.include_router(chats.router(app))
    client = TestClient(web)
    client.cookies[COOKIE] = app.access.log_in(user, f"{user}-password", "test")
    return client


def finished_run(app: App, steps: int = 5) -> RunFolder:
    folder = RunFolder(app.training.runs / "20260101-000000-facts")
    config = TrainingConfig(name="facts", model="tiny-llama", dataset="made-up-facts.json")
    folder.create(config, Plan(str(app.root / "models" / "tiny-llama"), str(app.root / "loras" / "facts"), "", "", ""))
    events.append_event(folder.events, events.Started(0, steps, 1, "cpu", "float32", 10, 1000, "15 rows"))
    for step in range(1, steps + 1):
        events.append_event(folder.events, events.Stepped(step, 0.1, 6.0 - step / 10, 1e-4, 1.0, 100, 0.5, 10**9))
    events.append_event(folder.events, events.Evaluated(steps, 5.0, True))
    events.append_event(folder.events, events.Sampled(steps, "<b>Who?</b>", "Mirela", "nobody"))
    events.append_event(folder.events, events.Done(steps, str(app.root / "loras" / "facts"), "all steps are done"))
    return folder


def test_a_run_is_told_with_curves_replies_and_commands(app):
    finished_run(app)
    page = browser(app, "ann")
    listed = page.get("/chats/training").json()
    assert listed["admin"] and [job["state"] for job in listed["jobs"]] == ["done"]
    run = page.get(f"/chats/training/{listed['jobs'][0]['id']}").json()
    assert run["curves"]["loss"][0] == [1, 5.9] and run["curves"]["evaluated"] == [[5, 5.0]]
    assert run["curves"]["speed"][0] == [1, 200.0]
    assert run["samples"] == [{"step": 5, "prompt": "<b>Who?</b>", "reply": "Mirela", "base": "nobody"}]
    assert "python -m modules.training.worker" in run["commands"]
    assert run["about"] == "cpu, float32, 10 of 1,000 parameters (1.00%)"


def test_long_curves_are_thinned_to_what_a_browser_can_draw():
    points = [(step, float(step)) for step in range(1, 10_001)]
    few = thinned(points)
    assert len(few) <= POINTS and few[-1] == points[-1]
    assert [step for step, _ in few] == sorted(step for step, _ in few)
    assert thinned(points[:POINTS]) == points[:POINTS]


def test_only_administrators_change_runs_and_everyone_may_look(app):
    id = finished_run(app).path.name
    bob = browser(app, "bob")
    assert bob.get(f"/chats/training/{id}").status_code == 200
    assert not bob.get("/chats/training").json()["admin"]
    for method, path in (
        ("POST", "/merge"),
        ("POST", "/adapter"),
        ("POST", "/stop"),
        ("POST", "/kill"),
        ("POST", "/resume"),
        ("POST", "/use"),
        ("DELETE", ""),
    ):
        assert bob.request(method, f"/chats/training/{id}{path}", json={}).status_code in (401, 403), path
    ann = browser(app, "ann")
    assert ann.delete(f"/chats/training/{id}").status_code == 200
    assert ann.get(f"/chats/training/{id}").status_code == 404


@pytest.mark.parametrize("id", ["nosuch", "..%2f..%2fmodels", ".hidden"])
def test_only_runs_can_be_asked_for(app, id):
    assert browser(app, "ann").get(f"/chats/training/{id}").status_code in (400, 404)


def test_a_checkpoint_is_copied_to_the_adapters_whole(app):
    folder = finished_run(app)
    with new_checkpoint(folder.checkpoints, 3) as draft:
        (draft / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
        (draft / "adapter_model.safetensors").write_bytes(b"weights")
        (draft / "optimizer.pt").write_bytes(b"moments")
    name = app.training.use_checkpoint(folder.path.name, "step-000003")
    assert {path.name for path in (app.root / "loras" / name).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_preview_marks_what_is_learnt_and_lets_no_markup_through(app, tiny_llama_folder):
    rows = [{"question": "<script>alert(1)</script>", "answer": "<img src=x>"}, {"question": "a", "answer": ""}]
    (app.training.places.datasets / "bad.json").write_text(json.dumps(rows))
    first = app.training.first_rows(TrainingConfig(model="tiny-llama", dataset="bad.json"))
    page = first_html(first, 2048) + rows_html(first)
    assert "<script>" not in page and "<img" not in page
    assert "<mark>&lt;img src=x&gt;&lt;|im_end|&gt;</mark>" in page
    assert "<b>2</b> no answer: answer is empty" in page
    assert first.tokenizer.vocab_size == load_tokenizer(tiny_llama_folder).vocab_size


def test_the_histogram_counts_every_row_and_shows_those_beyond_the_cutoff():
    drawn = histogram(Counter([5, 5, 6, 50, 300]), cutoff=100)
    titles = [part.split("</title>")[0] for part in drawn.split("<title>")[1:]]
    assert sum(int(title.rsplit(" ", 1)[1]) for title in titles) == 5
    assert drawn.count("class=over") == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.slow
def test_a_finished_adapter_is_used_in_a_new_chat_beside_the_loaded_model(app):
    """The model is loaded once: another adapter, or a checkpoint, is put beside it."""
    from modules.training.worker.__main__ import train

    settings = {
        "model": "tiny-llama",
        "dataset": "made-up-facts.json",
        "rank": 2,
        "max_steps": 2,
        "dtype": "float32",
        "threads": 1,
    }
    config = app.training.check(TrainingConfig.read({**settings, "name": "facts"}))
    folder = app.training._new_folder(config)
    train(folder)
    ann = browser(app, "ann")
    used = ann.post(f"/chats/training/{folder.path.name}/use", json={})
    assert used.status_code == 200, used.text
    model = loaded_in(app.manager)
    assert (model.name, model.adapters) == ("tiny-llama", ("facts",))
    assert app.store.for_owner("ann").chats.get(used.json()["chat"]).settings == {"adapter": "facts"}
    again = ann.post(f"/chats/training/{folder.path.name}/use", json={"checkpoint": "step-000002"}).json()
    assert again["adapter"] == "facts-step-000002"
    assert loaded_in(app.manager) is model and set(model.adapters) == {"facts", "facts-step-000002"}
    # Beside the base: the same question with and without it.
    name = ann.post(f"/chats/training/{folder.path.name}/adapter", json={"checkpoint": "step-000002"}).json()
    replies = [ann.post("/chats/training/ask", json={"question": "Who?", "adapter": one}) for one in (name, None)]
    assert name == "facts-step-000002" and all(reply.status_code == 200 for reply in replies)
    assert replies[0].text and replies[1].text
    assert ann.post("/chats/training/ask", json={"question": " "}).status_code == 400
