"""The folder of a run: what lies where in it, and the facts that its worker needs beside the config."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from modules.errors import UserError
from modules.library.paths import write_text
from modules.training.config import TrainingConfig, read_config, write_config
from modules.training.dataset import Places


@dataclass(frozen=True)
class Plan:
    """Where a run takes things from and puts its result; absolute paths as text."""

    model: str
    output: str
    datasets: str
    formats: str
    templates: str
    adapter: str = ""

    @property
    def places(self) -> Places:
        return Places(Path(self.datasets), Path(self.formats), Path(self.templates))


class RunFolder:
    """Names of the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.plan_file = path / "plan.json"
        self.events = path / "events.jsonl"
        self.log = path / "log.txt"
        self.checkpoints = path / "checkpoints"
        self.beginning = path / "beginning"
        self.data = path / "data.npz"
        self.reference = path / "reference.npz"
        self.board = path / "tensorboard"
        self.stop_mark = path / "stop"
        self.process = path / "process.json"
        self.queued = path / "queued"
        self.accelerate = path / "accelerate.yaml"
        self.merge = path / "merge.json"
        self.merge_process = path / "merge-process.json"
        self.merge_log = path / "merge.log"

    def create(self, config: TrainingConfig, plan: Plan) -> None:
        """Write what the worker reads."""
        self.path.mkdir(parents=True)
        write_config(self.config_file, config)
        write_text(self.plan_file, json.dumps(asdict(plan), indent=1, ensure_ascii=False))

    def repeat(self, again: RunFolder, name: str) -> None:
        """Write into the new folder `again` what makes a run of the same rows and settings, with a result called `name`."""
        plan = self.read_plan()
        output = Path(plan.output).with_name(name)
        if output.exists():
            raise UserError(f"There is already one called {name}: choose another name.")
        again.path.mkdir(parents=True, exist_ok=True)
        if self.data.exists():
            shutil.copy(self.data, again.data)
        write_config(again.config_file, self.read_config().changed({"name": name}))
        write_text(again.plan_file, json.dumps(asdict(replace(plan, output=str(output))), indent=1, ensure_ascii=False))

    def read_plan(self) -> Plan:
        """Raises UserError."""
        try:
            return Plan(**json.loads(self.plan_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise UserError(f"{self.path} is not the folder of a training run, or its plan.json is damaged.") from None

    def read_config(self) -> TrainingConfig:
        """Raises UserError."""
        return read_config(self.config_file)
