"""How the processes of a run are started: commands as lists of words, that can be repeated by hand, and accelerate's file."""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import yaml

from modules.errors import UserError
from modules.training.config import TrainingConfig

WORKER = "modules.training.worker"
CODE = Path(__file__).resolve().parent.parent.parent
"""The folder that commands must be started in."""


def command(config: TrainingConfig, folder: Path, *, machine: int = 0, python: str = "", name: str = "") -> list[str]:
    """The words that start the run on one machine (numbered from 0), or go on with it; with `name` they repeat it under that name."""
    python = python or sys.executable
    worker = ["-m", WORKER, str(folder), *(["--as", name] if name else [])]
    if config.processes == 1 and config.machines == 1:
        return [python, *worker]
    words = [python, "-m", "torch.distributed.run", "--nproc_per_node", str(config.processes)]
    port = str(config.main_port or (free_port() if config.machines == 1 else 29500))
    words += ["--master_addr", config.main_address, "--master_port", port]
    if config.machines > 1:
        words += ["--nnodes", str(config.machines), "--node_rank", str(machine)]
    return [*words, *worker]


def shown_commands(config: TrainingConfig, folder: Path, accelerate_file: Path, name: str) -> str:
    """What to type on each machine, in the folder of the program: to start the run or go on, and to repeat it as `name`."""
    lines = ["# start the run, or go on from its newest checkpoint"]
    lines += _for_each_machine(config, folder, accelerate_file)
    lines += ["", f"# repeat it from its beginning, as {name}"]
    lines += _for_each_machine(config, folder, accelerate_file, name)
    return "\n".join(lines)


def _for_each_machine(config: TrainingConfig, folder: Path, accelerate_file: Path, name: str = "") -> list[str]:
    lines = []
    for machine in range(config.machines):
        lines += [f"# machine {machine + 1}"] if config.machines > 1 else []
        lines.append(shlex.join(command(config, folder, machine=machine, python="python", name=name)))
        if config.sharding != "none":
            words = ["accelerate", "launch", "--config_file", str(accelerate_file), "--machine_rank", str(machine)]
            lines.append("# or: " + shlex.join([*words, "-m", WORKER, str(folder), *(["--as", name] if name else [])]))
    return lines


def accelerate_config(config: TrainingConfig) -> str:
    """The file for `accelerate launch`: FSDP 2 as the run's sharding says. It starts the same worker as torchrun does."""
    values: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": config.sharding == "fsdp",
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        },
        "num_machines": config.machines,
        "num_processes": config.processes * config.machines,
        "main_process_ip": config.main_address,
        "main_process_port": config.main_port or 29500,
        "mixed_precision": "no",
        "rdzv_backend": "static",
        "same_network": True,
    }
    return yaml.safe_dump(values, sort_keys=False)


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError as error:
            raise UserError(f"No port is free: {error.strerror}.") from None
        return probe.getsockname()[1]
