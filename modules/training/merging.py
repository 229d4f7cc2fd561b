"""Merging an adapter into a copy of its base model: a process of its own beside a run, and how it stands."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modules.errors import Conflict, UserError
from modules.library.disk import need_space
from modules.library.model_spec import ModelSpec
from modules.library.paths import path_inside, write_text
from modules.training import launch, process
from modules.training.folder import RunFolder


@dataclass(frozen=True)
class Merge:
    """name: of the model that is made; command: what does it, to be repeated by hand; reason: why it failed."""

    name: str
    state: Literal["running", "done", "failed"]
    command: str
    reason: str = ""


def start_merge(folder: RunFolder, spec: ModelSpec, adapter: Path, models: Path, name: str) -> Merge:
    """Begin to write models/`name`. Raises UserError, Conflict, Unavailable."""
    if spec.quantization:
        raise UserError(
            f"{spec.name} is quantised: an adapter cannot be written into it. It can be used beside the model as it is.",
            param="name",
        )
    output = path_inside(models, name)
    if output.exists():
        raise Conflict(f"There is already a model called {output.name}: choose another name.", param="name")
    if process.alive(folder.merge_process):
        raise Conflict("A merge of this run is under way: wait for its end.")
    need_space(models, spec.size_bytes, "The merged model")
    words = [
        "-m",
        "modules.training.worker.merge",
        *(str(path.resolve()) for path in (spec.path, adapter)),
        str(output.resolve()),
    ]
    folder.merge_log.unlink(missing_ok=True)
    write_text(folder.merge, json.dumps({"output": str(output), "command": shlex.join(["python", *words])}))
    process.start(
        [sys.executable, *words], cwd=launch.CODE, log=folder.merge_log, mark=folder.merge_process,
        environment=process.python_environment(),
    )  # fmt: skip
    merge = read_merge(folder)
    assert merge is not None
    return merge


def read_merge(folder: RunFolder) -> Merge | None:
    """How the last merge of a run stands; None where there was none, or what it made has been deleted since."""
    try:
        values = json.loads(folder.merge.read_text(encoding="utf-8"))
        output, command = Path(values["output"]), str(values["command"])
    except (OSError, ValueError, KeyError):
        return None
    if process.alive(folder.merge_process):
        return Merge(output.name, "running", command)
    if output.exists():
        return Merge(output.name, "done", command)
    said = folder.merge_log.read_text(encoding="utf-8", errors="replace").strip() if folder.merge_log.exists() else ""
    if not said:
        return None
    return Merge(output.name, "failed", command, said.splitlines()[-1][:2000])
