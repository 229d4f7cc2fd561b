"""A run that was stopped: at once its adapter can be used, and nothing more can be stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.api.training_answers import run_detail
from modules.app import App
from modules.errors import Conflict
from modules.services.training import Training
from modules.training import events, process
from modules.training.checkpoints import new_checkpoint
from modules.training.config import TrainingConfig
from modules.training.folder import Plan, RunFolder
from tests.fakes import EchoModel, loaded_in
from tests.in_process import make_app


@pytest.fixture
def app(tmp_path: Path, tiny_llama_folder: Path) -> Iterator[App]:
    shutil.copytree(tiny_llama_folder, tmp_path / "models" / "tiny-llama")
    app = make_app(tmp_path, EchoModel(name="tiny-llama"))
    yield app
    app.close()


def make_run(app: App, **settings: object) -> RunFolder:
    folder = RunFolder(app.training.runs / "20260101-000000-facts")
    config = TrainingConfig.read({"name": "facts", "model": "tiny-llama", "dataset": "facts.json", **settings})
    folder.create(config, Plan("", str(app.root / "loras" / "facts"), "", "", ""))
    return folder


@pytest.fixture
def running(app: App, tmp_path: Path) -> Iterator[RunFolder]:
    """A run in its second step, in a process that does nothing."""
    folder = make_run(app)
    pid = process.start(["sleep", "600"], cwd=tmp_path, log=folder.log, mark=folder.process, environment={})
    events.append_event(folder.events, events.Started(0, 9, 1, "cpu", "float32", 10, 1000))
    events.append_event(folder.events, events.Stepped(1, 0.1, 2.0, 1e-4, 1.0, 100, 0.5, 10**9))
    yield folder
    process.kill_group(pid)


def save(folder: RunFolder, step: int) -> None:
    with new_checkpoint(folder.checkpoints, step) as draft:
        (draft / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
        )
        (draft / "adapter_model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    events.append_event(folder.events, events.Saved(step, f"step-{step:06d}"))


def test_a_run_has_stopped_when_it_says_so_though_its_process_still_gives_its_memory_back(app, running):
    def seen() -> tuple[str, bool, bool]:
        view = run_detail(Training(app, "local").detail(running.path.name))
        return view.state, view.active, view.usable

    assert seen() == ("running", True, False)
    app.training.stop(running.path.name)
    assert seen() == ("stopping", True, False)
    save(running, 1)
    assert seen() == ("stopping", True, False)
    events.append_event(running.events, events.Stopped(1))
    assert seen() == ("stopped", False, True)
    running.stop_mark.unlink()
    assert seen() == ("stopped", False, True)
    assert app.training.get(running.path.name).can_resume


@pytest.mark.parametrize("last", [events.Done(1, "", "all steps are done"), events.Failed("no")], ids=["done", "failed"])
def test_the_last_word_of_a_run_counts_whatever_its_process_does(app, running, last):
    events.append_event(running.events, last)
    assert app.training.get(running.path.name).state == type(last).__name__.lower()


def test_the_last_word_of_the_time_before_does_not(app, running):
    """It was resumed: what stands in its events was told by the process before."""
    running.events.unlink()
    events.append_event(running.events, events.Started(0, 9, 1, "cpu", "float32", 10, 1000, at=1.0))
    events.append_event(running.events, events.Stopped(1))
    assert app.training.get(running.path.name).state == "starting"


def test_the_newest_checkpoint_of_a_run_that_ended_early_is_its_adapter(app):
    folder = make_run(app)
    events.append_event(folder.events, events.Started(0, 9, 1, "cpu", "float32", 10, 1000))
    with pytest.raises(Conflict, match="has no adapter yet"):
        Training(app, "local").use_adapter(folder.path.name, "")
    save(folder, 1)
    save(folder, 2)
    events.append_event(folder.events, events.Stopped(2))
    _, used = Training(app, "local").use_in_chat(folder.path.name)
    assert used == "facts-step-000002" and loaded_in(app.manager).adapters == ("facts-step-000002",)


@pytest.mark.parametrize("settings", [{"method": "full"}, {"init": "pissa"}], ids=str)
def test_a_whole_model_and_an_adapter_for_a_changed_base_cannot_be_used_from_a_checkpoint(app, settings):
    folder = make_run(app, **settings)
    save(folder, 1)
    events.append_event(folder.events, events.Stopped(1))
    assert app.training.get(folder.path.name).adapter is None
