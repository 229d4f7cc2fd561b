"""Jobs as processes: killed, resumed, stopped, queued, refused; and two processes that do the work of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modules.errors import Conflict, NotFound, UserError
from modules.training import events, process
from modules.training.config import TrainingConfig
from modules.training.folder import RunFolder
from modules.training.jobs import TrainingJob, TrainingJobs
from tests.tiny import write_tiny_llama
from tests.training.conftest import SETTINGS, counting_rows

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def jobs(training_root):
    jobs = TrainingJobs(training_root)
    yield jobs
    jobs.close()
    for job in jobs.list():
        jobs.stop_now(job.id)


def config(**settings) -> TrainingConfig:
    return TrainingConfig.read({**SETTINGS, **settings})


def wait_for(look: Callable[[], Any], seconds: float = 150, what: str = "it") -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {seconds} s")


def when_ended(jobs: TrainingJobs, id: str) -> TrainingJob:
    def look() -> TrainingJob | None:
        job = jobs.get(id)
        return job if job.state not in ("queued", "starting", "running", "stopping") else None

    return wait_for(look, what=f"the end of {id}")


def steps(jobs: TrainingJobs, id: str) -> dict[int, float]:
    return {event.step: event.loss for event in jobs.events(id) if isinstance(event, events.Stepped)}


def undisturbed(make_run) -> dict[int, float]:
    """The losses of 24 steps, in this very process."""
    from modules.training.worker.__main__ import train

    folder = make_run("undisturbed", max_steps=24)
    train(folder)
    return {event.step: event.loss for event in events.read_events(folder.events) if isinstance(event, events.Stepped)}


# --- killed and resumed


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.slow
def test_a_killed_worker_goes_on_with_the_losses_of_an_undisturbed_run(jobs, make_run):
    wanted = undisturbed(make_run)
    job = jobs.start(config(name="killed", save_every=5))
    wait_for(lambda: 13 in steps(jobs, job.id), what="step 13")
    pid = process.alive(RunFolder(jobs.runs / job.id).process)
    assert pid
    os.kill(pid, signal.SIGKILL)
    killed = when_ended(jobs, job.id)
    assert killed.state == "interrupted" and killed.can_resume and "from outside" in killed.reason
    assert killed.step < 24
    jobs.resume(job.id)
    done = when_ended(jobs, job.id)
    assert done.state == "done", jobs.log_tail(job.id)
    started = [event.step for event in jobs.events(job.id) if isinstance(event, events.Started)]
    assert started[-1] >= 10
    assert steps(jobs, job.id) == pytest.approx(wanted, abs=1e-6)


REAL = f"killed-{os.getpid()}"


@pytest.fixture
def clean_runs():
    """The real server has one place for its runs: nothing of the test stays there."""

    def clean() -> None:
        for folder in ROOT.glob(f"training/runs/*-{REAL}*"):
            shutil.rmtree(folder)

    clean()
    yield
    clean()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.slow
@pytest.mark.trains_here
def test_worker_and_server_killed_together_lose_nothing_but_the_last_steps(training_root, make_run, clean_runs, tmp_path):
    """server.py itself: the run is begun, and after both were killed resumed, by requests to its API."""
    from modules.training.worker.__main__ import train
    from tests.serving import Server

    write_tiny_llama(training_root / "models" / "larger", hidden=256, layers=4)  # steps long enough to be killed between two
    shutil.copy(ROOT / "training" / "datasets" / "made-up-facts.json", training_root / "training" / "datasets")
    settings = {"model": "larger", "dataset": "made-up-facts.json", "batch": 12, "save_every": 5}
    folder = make_run("undisturbed", **settings)
    train(folder)
    wanted = {event.step: event.loss for event in events.read_events(folder.events) if isinstance(event, events.Stepped)}
    places = ["--nowebui", "--model-dir", str(training_root / "models"), "--lora-dir", str(training_root / "loras")]
    server = Server(places, data=tmp_path / "data")
    with server, server.client() as client:
        asked = {"config": {**SETTINGS, **settings, "name": REAL}}
        started = client.post("/v1/internal/training/jobs", json=asked)
        assert started.status_code == 200, started.text
        path = f"/v1/internal/training/jobs/{started.json()['id']}"
        wait_for(lambda: client.get(path).json()["step"] >= 13, what="step 13")
        pid = process.alive(RunFolder(ROOT / "training" / "runs" / started.json()["id"]).process)
        assert pid
        os.killpg(pid, signal.SIGKILL)
        server.kill()
    with Server(places, data=tmp_path / "data") as server, server.client() as client:
        killed = client.get(path).json()
        assert killed["state"] == "interrupted" and 13 <= killed["step"] < 24
        assert client.post(f"{path}/resume").status_code == 200
        ended = wait_for(lambda: (job := client.get(path).json())["state"] in ("done", "failed") and job, what="the end")
        assert ended["state"] == "done", ended
        process.wait_for_end(RunFolder(ROOT / "training" / "runs" / ended["id"]).process)
        told = client.get(f"{path}/events").json()["events"]
    resumed = [event["step"] for event in told if event["event"] == "started"][-1]
    assert 10 <= resumed < killed["step"]
    losses = {event["step"]: event["loss"] for event in told if event["event"] == "stepped"}
    assert losses == pytest.approx(wanted, abs=1e-6)


# --- stop, queue, copy, delete


@pytest.mark.slow
def test_a_run_is_stopped_after_saving_while_the_next_one_waits_its_turn(jobs):
    first = jobs.start(config(name="first", max_steps=5000, epochs=1000, save_every=10_000))
    assert first.state in ("starting", "running")
    with pytest.raises(Conflict, match="first is being trained"):
        jobs.start(config(name="refused"))
    second = jobs.start(config(name="second", max_steps=2), queue=True)
    with pytest.raises(Conflict, match="makes second, too"):
        jobs.start(config(name="second"), queue=True)
    third = jobs.start(config(name="third"), queue=True)
    assert (second.state, third.state) == ("queued", "queued")
    with pytest.raises(Conflict, match="stop it first"):
        jobs.delete(first.id)
    wait_for(lambda: jobs.get(first.id).step >= 2, what="the second step")
    running = jobs.get(first.id)
    assert running.state == "running" and running.total_steps == 5000 and running.loss and running.tokens_per_second
    assert running.remaining and running.remaining > 0
    jobs.stop(third.id)
    assert jobs.get(third.id).state == "new"
    jobs.stop(first.id)
    stopped = when_ended(jobs, first.id)
    assert stopped.state == "stopped" and stopped.checkpoints == (f"step-{stopped.step:06d}",)
    assert when_ended(jobs, second.id).state == "done", jobs.log_tail(second.id)
    assert jobs.use_checkpoint(first.id, stopped.checkpoints[0]) == f"first-step-{stopped.step:06d}"
    assert jobs.loras.find("second").rank == 4 and jobs.loras.find(f"first-{stopped.checkpoints[0]}").problem is None
    assert jobs.copy(second.id).name == "second-2"
    jobs.delete(first.id)
    with pytest.raises(NotFound):
        jobs.get(first.id)


@pytest.mark.slow
def test_a_crash_is_shown_as_a_crash_with_its_last_lines(jobs):
    job = jobs.start(config(name="crash", max_steps=500, epochs=100))
    folder = RunFolder(jobs.runs / job.id)
    wait_for(lambda: jobs.get(job.id).state == "running", what="the start")
    jobs.stop_now(job.id)
    (folder.plan_file).write_text(folder.plan_file.read_text().replace("tiny-llama", "gone"))
    jobs.resume(job.id)
    failed = when_ended(jobs, job.id)
    assert failed.state == "failed" and "gone" in failed.reason
    assert "failed:" in jobs.log_tail(job.id, 3)


def test_what_ends_before_its_first_word_has_failed_with_its_last_lines(jobs, make_run, monkeypatch):
    folder = make_run("mute")
    process.start(
        [sys.executable, "-c", "raise SystemExit('no module named torch')"],
        cwd=ROOT, log=folder.log, mark=folder.process, environment={},
    )  # fmt: skip
    job = when_ended(jobs, "mute")
    assert job.state == "failed" and "no module named torch" in job.reason


def test_a_run_is_in_the_queue_until_its_process_has_begun(jobs, make_run, monkeypatch):
    folder = make_run("waiting")
    folder.queued.write_text("1")
    assert jobs.get("waiting").state == "queued"
    start, seen = process.start, []

    def watched(*words: Any, **more: Any) -> int:
        seen.append(jobs.get("waiting").state)
        number = start([sys.executable, "-c", "input()"], **{**more, "environment": {}})
        seen.append(jobs.get("waiting").state)
        return number

    monkeypatch.setattr(process, "start", watched)
    TrainingJobs(jobs.root)  # it finds the waiting run, and begins it
    wait_for(lambda: not folder.queued.exists(), what="the start")
    assert seen == ["queued", "starting"]


def test_a_run_that_ends_while_it_is_looked_at_has_not_been_interrupted(jobs, make_run, monkeypatch):
    folder = make_run("quick")
    folder.process.write_text(json.dumps({"pid": 1, "started": 0.0}))
    events.append_event(folder.events, events.Started(0, 2, 1, "cpu", "float32", 1, 1))

    def ends(mark: Path) -> None:
        events.append_event(folder.events, events.Done(2, "loras/quick", "all steps are done"))

    monkeypatch.setattr(process, "alive", ends)
    assert jobs.get("quick").state == "done"


# --- told before the start


GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": ""}, "Choose a model"),
        ({"model": "nosuch"}, "There is no model called nosuch"),
        ({"dataset": ""}, "Choose a data set"),
        ({"dataset": "nosuch"}, "There is no data set called nosuch"),
        ({"format": "sharegpt"}, "needs the column conversations, and the data has instruction, input, output"),
        ({"cutoff": 10}, "Raise the cutoff"),
        ({"target_modules": "q_proj, w_proj"}, "no layer called w_proj"),
        ({"continue_from": "nosuch"}, "no adapter called nosuch"),
        ({"method": "full", "continue_from": "x"}, "no adapter to continue"),
        ({"method": "gptq-lora"}, "is no GPTQ model"),
        ({"early_stop": 2}, "Early stop needs held-out rows"),
        ({"keep_best": True}, "needs held-out rows"),
        ({"loss": "after"}, "needs the marker"),
        ({"eval_dataset": "nosuch"}, "There is no data set called nosuch"),
        ({"sharding": "fsdp"}, "more than one process"),
        ({"machines": 2}, "address of the first one"),
        ({"continue_from": "taken", "init": "eva"}, "set init to default"),
        ({"method": "qlora", "init": "pissa"}, "needs a base that is not quantised"),
        ({"dora": True, "init": "corda"}, "DoRA cannot begin with corda"),
        ({"init": "loftq"}, "choose the method qlora"),
        ({"method": "qlora", "init": "loftq", "dora": True}, "DoRA cannot begin with loftq"),
        ({"method": "qlora", "init": "loftq", "rank": 128}, "rank up to"),
        ({"rank": 5, "init": "orthogonal"}, "even rank"),
        ({"rank": 33, "init": "lora_ga", "target_modules": "q_proj"}, "rank up to"),
        ({"rank": 128, "init": "pissa"}, "rank up to"),
        ({"processes": 2, "init": "eva"}, "one process"),
        ({"processes": 2, "sharding": "fsdp", "init": "pissa"}, "which sharding divides"),
        ({"name": "../x"}, "cannot be a name"),
        ({"name": "taken"}, "already one called taken"),
    ],
    ids=str,
)
def test_what_is_known_to_fail_is_refused_before_the_start(jobs, settings, words):
    (jobs.root / "loras" / "taken").mkdir()
    with pytest.raises(UserError, match=words):
        jobs.start(config(**settings))
    assert jobs.list() == []


def test_one_row_cannot_be_divided_and_answers_must_exist(jobs):
    data = jobs.places.datasets
    (data / "one.json").write_text(json.dumps(counting_rows(1)))
    with pytest.raises(UserError, match="too few to hold out"):
        jobs.check(config(dataset="one", eval_share=0.1))
    assert jobs.check(config(dataset="one")).name == "one"
    (data / "mute.json").write_text(json.dumps([{**row, "output": ""} for row in counting_rows(3)]))
    with pytest.raises(UserError, match="3 no answer"):
        jobs.check(config(dataset="mute"))


def gptq_model(jobs: TrainingJobs, tiny_llama_folder: Path) -> None:
    folder = jobs.root / "models" / "tiny-gptq"
    folder.mkdir()
    for file in tiny_llama_folder.iterdir():
        (folder / file.name).symlink_to(file)
    values = json.loads((tiny_llama_folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**values, **GPTQ}))


def test_a_gptq_base_without_its_package_is_told_before_the_start(jobs, tiny_llama_folder, monkeypatch):
    import importlib.util

    gptq_model(jobs, tiny_llama_folder)
    with pytest.raises(UserError, match="choose the method gptq-lora"):
        jobs.check(config(model="tiny-gptq"))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gptqmodel" else found(name, *more))
    with pytest.raises(UserError, match="pip install gptqmodel"):
        jobs.check(config(model="tiny-gptq", method="gptq-lora"))


def test_a_gguf_file_is_refused_with_what_to_do(jobs, starter_gguf):
    (jobs.root / "models" / starter_gguf.name).symlink_to(starter_gguf)
    with pytest.raises(UserError, match="as a transformers folder"):
        jobs.check(config(model=starter_gguf.name))


def test_a_cutoff_beyond_the_models_context_becomes_the_context(jobs):
    assert jobs.check(config(cutoff=100_000)).cutoff == 4096


# --- commands


def test_the_command_can_be_repeated_by_hand(jobs, make_run):
    make_run("single")
    make_run("pair", processes=2, main_port=4321)
    make_run("far", processes=8, machines=2, main_address="10.0.0.1")
    make_run("sharded", processes=4, sharding="fsdp")
    where = jobs.runs
    start, again = jobs.commands("single").split("\n\n")
    assert start.splitlines()[1:] == [f"python -m modules.training.worker {where}/single"]
    assert again.splitlines()[1:] == [f"python -m modules.training.worker {where}/single --as single-2"]
    assert jobs.commands("pair").splitlines()[1] == (
        "python -m torch.distributed.run --nproc_per_node 2 --master_addr 127.0.0.1 --master_port 4321 "
        f"-m modules.training.worker {where}/pair"
    )
    far = jobs.commands("far").splitlines()
    assert far[1] == "# machine 1" and "--nnodes 2 --node_rank 1" in far[4] and "--master_addr 10.0.0.1" in far[4]
    assert "# or: accelerate launch --config_file" in jobs.commands("sharded")
    assert "num_processes: 4" in jobs.accelerate_file("sharded") and not jobs.accelerate_file("single")
