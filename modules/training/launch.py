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


def command(config: TrainingConfig, folder: Path, *, accelerate_file: Path, machine: int = 0, python: str = "") -> list[str]:
    """The words that start the run on one machine (numbered from 0)."""
    python = python or sys.executable
    if config.sharding.startswith("deepspeed"):
        return [
            python, "-m", "accelerate.commands.launch", "--config_file", str(accelerate_file),
            "--machine_rank", str(machine), "-m", WORKER, str(folder),
        ]  # fmt: skip
    if config.processes == 1 and config.machines == 1:
        return [python, "-m", WORKER, str(folder)]
    words = [python, "-m", "torch.distributed.run", "--nproc_per_node", str(config.processes)]
    port = str(config.main_port or (free_port() if config.machines == 1 else 29500))
    words += ["--master_addr", config.main_address, "--master_port", port]
    if config.machines > 1:
        words += ["--nnodes", str(config.machines), "--node_rank", str(machine)]
    return [*words, "-m", WORKER, str(folder)]


def shown_commands(config: TrainingConfig, folder: Path, accelerate_file: Path) -> str:
    """What to type on each machine, in the folder of the program."""
    lines = []
    for machine in range(config.machines):
        words = command(config, folder, accelerate_file=accelerate_file, machine=machine, python="python")
        lines += [f"# machine {machine + 1}"] if config.machines > 1 else []
        lines.append(shlex.join(words))
    return "\n".join(lines)


def accelerate_config(config: TrainingConfig) -> str:
    """The file for `accelerate launch`, for FSDP or DeepSpeed."""
    values: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if config.sharding == "fsdp" else "DEEPSPEED",
        "num_machines": config.machines,
        "num_processes": config.processes * config.machines,
        "main_process_ip": config.main_address,
        "main_process_port": config.main_port or 29500,
        "mixed_precision": "no",
        "rdzv_backend": "static",
        "same_network": True,
    }
    if config.sharding == "fsdp":
        values["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        }
    else:
        values["deepspeed_config"] = {
            "zero_stage": int(config.sharding[-1]),
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.clip or 1.0,
            "offload_optimizer_device": "none",
            "offload_param_device": "none",
            "zero3_save_16bit_model": config.sharding == "deepspeed-3",
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
