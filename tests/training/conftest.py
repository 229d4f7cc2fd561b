"""A root folder with the tiny Llama, a small data set, and the formats and templates that come with the program."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from modules.training.config import TrainingConfig
from modules.training.folder import Plan, RunFolder

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS: dict[str, Any] = {
    "model": "tiny-llama", "dataset": "counting.json", "batch": 4, "max_steps": 24, "epochs": 10, "learning_rate": 3e-3,
    "rank": 4, "dtype": "float32", "threads": 1,
}  # fmt: skip


def counting_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    pick = random.Random(seed)
    return [
        {"instruction": f"Count to {last}", "input": "", "output": " ".join(str(n) for n in range(1, last + 1))}
        for last in (pick.randint(2, 30) for _ in range(count))
    ]


@pytest.fixture
def training_root(tmp_path, tiny_llama_folder) -> Path:
    for name in ("models", "loras", "prompts", "training/datasets", "training/runs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "tiny-llama").symlink_to(tiny_llama_folder)
    (tmp_path / "training" / "formats").symlink_to(ROOT / "training" / "formats")
    (tmp_path / "training" / "recipes").symlink_to(ROOT / "training" / "recipes")
    (tmp_path / "prompts" / "templates").symlink_to(ROOT / "prompts" / "templates")
    (tmp_path / "training" / "datasets" / "counting.json").write_text(json.dumps(counting_rows(40)))
    return tmp_path


@pytest.fixture
def make_run(training_root):
    """make_run(name, **settings) → the folder of a run that has not begun."""

    def make(name: str, **settings: Any) -> RunFolder:
        config = TrainingConfig.read({**SETTINGS, "name": name, **settings})
        folder = RunFolder(training_root / "training" / "runs" / name)
        plan = Plan(
            model=str(training_root / "models" / config.model),
            output=str(training_root / ("models" if config.method == "full" else "loras") / name),
            datasets=str(training_root / "training" / "datasets"),
            formats=str(training_root / "training" / "formats"),
            templates=str(training_root / "prompts" / "templates"),
            adapter=str(training_root / "loras" / config.continue_from) if config.continue_from else "",
        )
        folder.create(config, plan)
        return folder

    return make
