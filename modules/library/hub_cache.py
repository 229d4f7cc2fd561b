"""The hub's own cache, which other programs fill: models--ORG--NAME/snapshots/COMMIT/ with links to blobs/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CACHED = "models--"
_COMMIT = 8
"""Digits of a commit in the name of a snapshot that no branch points to."""


def is_cache(path: Path) -> bool:
    """Whether `path` is a repository of models in the cache."""
    return path.name.startswith(CACHED) and (path / "snapshots").is_dir()


def is_other_cache(path: Path) -> bool:
    """Whether `path` is what the cache keeps besides: data sets, spaces."""
    return path.name.startswith(("datasets--", "spaces--")) and (path / "snapshots").is_dir()


def snapshots(path: Path) -> Iterator[tuple[str, Path]]:
    """(name, folder) of each snapshot, named as a download of it would be: ORG_NAME for main, ORG_NAME_BRANCH, ORG_NAME_COMMIT."""
    name = path.name.removeprefix(CACHED).replace("--", "_")
    branches = _branches(path)
    folders = sorted(folder for folder in (path / "snapshots").iterdir() if folder.is_dir())
    for folder in folders:
        branch = branches.get(folder.name) or ("main" if len(folders) == 1 else folder.name[:_COMMIT])
        yield (name if branch == "main" else f"{name}_{branch}"), folder


def _branches(path: Path) -> dict[str, str]:
    """Commit → the branch that points to it: main, where that is one of several."""
    refs = path / "refs"
    files = [file for file in sorted(refs.rglob("*"), key=lambda file: file.name == "main") if file.is_file()]
    return {
        file.read_text(encoding="utf-8", errors="replace").strip(): "_".join(file.relative_to(refs).parts) for file in files
    }
