"""Two processes that do the work of one: the same losses, about half the time, and weights that are divided between them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.training import checkpoints, events, launch
from modules.training.config import TrainingConfig
from modules.training.folder import RunFolder
from modules.training.worker.__main__ import train
from tests.tiny import write_tiny_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
ROOT = Path(__file__).resolve().parent.parent.parent


def told(folder: RunFolder, kind: type) -> list:
    return [event for event in events.read_events(folder.events) if isinstance(event, kind)]


def losses(folder: RunFolder) -> list[float]:
    return [event.loss for event in told(folder, events.Stepped)]


def in_processes(folder: RunFolder, *, by_accelerate: bool = False) -> None:
    """As the page starts it, or as the page shows how to do it with accelerate."""
    words = launch.command(folder.read_config(), folder.path)
    if by_accelerate:
        folder.accelerate.write_text(launch.accelerate_config(folder.read_config()))
        options = ["--config_file", str(folder.accelerate), "--machine_rank", "0"]
        words = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", launch.WORKER, str(folder.path)]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.alone
def test_two_processes_give_the_losses_of_one_in_two_thirds_of_the_time(make_run, training_root, threads):
    """That there really were two is read from what they say of themselves, and from two states of random numbers.

    The time is that of a middle step, and the best of three tries: other programs may be at work on the same cores.
    """
    write_tiny_llama(training_root / "models" / "larger", hidden=256, layers=4)
    rows = ["question,answer", *(f"Who is {n}?,{'The keeper of the lamp writes his book. ' * 9}" for n in range(16))]
    (training_root / "training" / "datasets" / "long.csv").write_text("\n".join(rows))
    settings = {"model": "larger", "dataset": "long.csv", "batch": 8, "max_steps": 7, "save_every": 100}
    ratios = []
    while len(ratios) < 3 and max(ratios, default=0) < 1.5:
        one = make_run(f"one-{len(ratios)}", **settings)
        two = make_run(f"two-{len(ratios)}", processes=2, **settings)
        train(one)
        in_processes(two)
        assert told(two, events.Started)[0].processes == 2
        assert losses(two) == pytest.approx(losses(one), abs=1e-3)
        states = torch.load(checkpoints.list_checkpoints(two.checkpoints)[-1].path / "random.pt", weights_only=True)
        assert len(states) == 2 and not torch.equal(states[0]["cpu"], states[1]["cpu"])
        ratios.append(middle(one) / middle(two))
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core cannot do two things at once")
    assert max(ratios) >= 1.5, ratios


def middle(folder: RunFolder) -> float:
    return statistics.median(event.seconds for event in told(folder, events.Stepped)[1:])


@pytest.mark.parametrize(("method", "sharding"), [("lora", "fsdp"), ("full", "fsdp-gradients")])
def test_divided_weights_give_the_losses_of_whole_ones_and_go_on_where_they_were(make_run, threads, method, sharding):
    whole = make_run("whole", max_steps=4, method=method, learning_rate=1e-3)
    divided = make_run(
        "divided", max_steps=4, method=method, learning_rate=1e-3, processes=2, sharding=sharding, save_every=2,
        main_port=launch.free_port(),
    )  # fmt: skip
    train(whole)
    in_processes(divided)
    assert losses(divided) == pytest.approx(losses(whole), abs=1e-4)
    (checkpoints.list_checkpoints(divided.checkpoints)[-1].path / checkpoints.COMPLETE).unlink()
    divided.events.unlink()
    in_processes(divided, by_accelerate=True)
    started = told(divided, events.Started)[0]
    assert (started.step, started.processes) == (2, 2)
    assert losses(divided) == pytest.approx(losses(whole)[2:], abs=1e-4)
    from safetensors.torch import load_file

    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    one, two = (load_file(Path(folder.read_plan().output) / name) for folder in (whole, divided))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


@pytest.mark.parametrize(("sharding", "reshards"), [("fsdp", True), ("fsdp-gradients", False)])
def test_the_file_for_accelerate_is_read_by_accelerate_as_it_is_meant(tmp_path, sharding, reshards):
    from accelerate.commands.config.config_args import load_config_from_file

    config = TrainingConfig.read(
        {"sharding": sharding, "machines": 3, "processes": 4, "main_address": "10.0.0.1", "main_port": 4321}
    )
    (tmp_path / "accelerate.yaml").write_text(launch.accelerate_config(config))
    read: Any = load_config_from_file(str(tmp_path / "accelerate.yaml"))
    assert (read.distributed_type.value, read.num_machines, read.num_processes) == ("FSDP", 3, 12)
    assert (read.main_process_ip, read.main_process_port, read.use_cpu) == ("10.0.0.1", 4321, False)
    assert read.fsdp_config["fsdp_version"] == 2 and read.fsdp_config["fsdp_reshard_after_forward"] is reshards
