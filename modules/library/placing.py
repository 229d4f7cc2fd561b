"""What has arrived takes its place in a folder: all of it, or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from modules.library.manifest import Manifest, read_manifest, write_manifest


def _aside(draft: Path) -> Path:
    """Where what is replaced lies meanwhile: no repository can have a file there."""
    return draft.with_name(f".{draft.name}.replaced")


def put_in_place(draft: Path, target: Path, arrived: Iterable[str], outdated: Iterable[str], manifest: Manifest) -> None:
    """Move the files `arrived` from `draft` into `target`, and take those away that are `outdated`; then `draft` is gone.

    What they replace lies aside until everything is in place; where anything fails, `target` is as it was. Raises OSError.
    """
    aside = _aside(draft)
    moves: list[tuple[Path, Path]] = []

    def move(source: Path, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, to)
        moves.append((source, to))

    def put_aside(path: str) -> None:
        if os.path.lexists(target / path):
            if (target / path).is_dir():
                raise IsADirectoryError(21, "a folder is in the place of a file", str(target / path))
            move(target / path, aside / path)

    try:
        for path in outdated:
            put_aside(path)
            _remove_if_empty(target, Path(path).parent)
        for path in arrived:
            put_aside(path)
            move(draft / path, target / path)
        write_manifest(target, manifest)
    except BaseException:
        for source, to in reversed(moves):
            with suppress(OSError):  # what cannot be moved back now, the next download brings back
                source.parent.mkdir(parents=True, exist_ok=True)
                os.replace(to, source)
        if not _files_in(aside):
            shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(draft, ignore_errors=True)


def bring_back(draft: Path, target: Path) -> None:
    """Undo what a program that was killed while it moved had put aside. Raises OSError."""
    aside = _aside(draft)
    manifest = read_manifest(target)
    for file in _files_in(aside):
        path = file.relative_to(aside)
        # What the folder's note names no longer was replaced to the end.
        if manifest and manifest.file(path.as_posix()) and not os.path.lexists(target / path):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target / path)
    shutil.rmtree(aside, ignore_errors=True)


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def _remove_if_empty(target: Path, folder: Path) -> None:
    while folder.parts:
        try:
            (target / folder).rmdir()
        except OSError:
            return
        folder = folder.parent
