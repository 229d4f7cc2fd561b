"""Checkpoints that are whole or not there: written under a temporary name, renamed, then marked complete."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modules.library.paths import write_text

COMPLETE = "complete.json"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint after `step` steps."""

    step: int
    path: Path

    @property
    def name(self) -> str:
        return self.path.name


@contextmanager
def new_checkpoint(folder: Path, step: int) -> Iterator[Path]:
    """A folder to write into; at the end it becomes folder/step-N, and vanishes where anything fails."""
    final = folder / f"step-{step:06d}"
    draft = folder / f".{final.name}.part"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        sizes = _sizes(draft)
        for name in sizes:
            _flush(draft / name)
        if final.exists():
            old = folder / f".{final.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        draft.rename(final)
        _flush(folder)
        write_text(final / COMPLETE, json.dumps({"step": step, "files": sizes}, indent=1))
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(folder / f".{final.name}.old", ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete ones, oldest first; a file that is missing or cut short makes one incomplete."""
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    whole = [Checkpoint(int(match[1]), path) for match, path in found if match and is_complete(path)]
    return sorted(whole, key=lambda checkpoint: checkpoint.step)


def is_complete(path: Path) -> bool:
    """Whether the mark is there, and every file has the size that it says."""
    try:
        sizes = json.loads((path / COMPLETE).read_text(encoding="utf-8"))["files"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def prune(folder: Path, keep: int, best: int | None = None) -> None:
    """Delete all but the newest `keep` and the one of step `best`, and what unfinished writing left."""
    checkpoints = list_checkpoints(folder)
    for checkpoint in checkpoints[:-keep]:
        if checkpoint.step != best:
            shutil.rmtree(checkpoint.path, ignore_errors=True)
    newest = checkpoints[-1].step if checkpoints else -1
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if path.is_dir() and (path.name.startswith(".step-") or (match and int(match[1]) < newest and not is_complete(path))):
            shutil.rmtree(path, ignore_errors=True)


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _flush(path: Path) -> None:
    """Ask the disk to keep it, so that a power cut does not leave a name without its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
