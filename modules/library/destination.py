"""The folder that a repository is downloaded into: a new one, or its own from before; never one that holds something else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from modules.errors import Conflict
from modules.library.hub import RepositoryFile, RepositoryName
from modules.library.manifest import FILE, problem_of, read_manifest

_ELSEWHERE = "Nothing was changed. Move it away, or put the download elsewhere with `--output FOLDER`."


def draft_of(target: Path) -> Path:
    """Where the files of `target` lie until all of them are there, on the same disk: never taken for a model."""
    place = target.resolve() if target.is_symlink() else target
    return place.with_name(f"{place.name}.part")


def destination(name: RepositoryName, parent: Path) -> Path:
    """The folder in `parent` for `name`. Raises Conflict where what lies under its name is something else."""
    usual, distinct = parent / name.folder, parent / name.distinct_folder
    if own := next((place for place in (usual, distinct) if _holds(place, name)), None):
        return own
    other = _holder(usual)
    taken = other is not None and not other.is_same(name) and other.folder.casefold() == usual.name.casefold()
    place = distinct if taken else usual
    if problem := not_own(place, name):
        raise Conflict(problem)
    return place


def downloaded(name: RepositoryName, parents: Iterable[Path]) -> Path | None:
    """The folder that holds `name`, or that has its name and no word of where it is from; None where there is neither."""
    places = [parent / folder for parent in parents for folder in (name.folder, name.distinct_folder)]
    own = next((place for place in places if _holds(place, name) and place.is_dir()), None)
    return own or next((place for place in places if place.is_dir() and read_manifest(place) is None), None)


def not_own(target: Path, name: RepositoryName) -> str | None:
    """Why nothing of `name` may be put into `target`, in a sentence; None where it is free, or holds `name` already."""
    for place in (target, draft_of(target)):
        if not os.path.lexists(place) or _is_empty(place):
            continue
        manifest = read_manifest(place)
        if manifest is not None:
            if not manifest.name.is_same(name):
                return f"{place} is there already, and holds {manifest.name}, not {name}. {_ELSEWHERE}"
        elif place == target or not (place / FILE).is_file():
            told = f"{place} is there already, and was not downloaded from {name}: {_what(place)}. {_ELSEWHERE}"
            copied = f"{told} If it is a copy of {name}, the command with `--check` compares it and takes it over."
            return copied if place.is_dir() else told
    return None


def strangers(target: Path, files: Iterable[RepositoryFile]) -> list[RepositoryFile]:
    """Of the files to come, those in whose place lies one that no download put there."""
    manifest = read_manifest(target)

    def is_own(path: Path) -> bool:
        return path.is_symlink() or (path.exists() and not path.is_dir())

    return [file for file in files if is_own(target / file.path) and not (manifest and manifest.file(file.path))]


def refuse_strangers(target: Path, files: Iterable[RepositoryFile]) -> None:
    """Raises Conflict where one of the files to come would take the place of somebody's own."""
    different = [file.path for file in strangers(target, files) if not file.has_hash or problem_of(target / file.path, file)]
    if different:
        raise Conflict(f"{target / different[0]} is there already, and not of this repository. {_ELSEWHERE}")


def _holds(place: Path, name: RepositoryName) -> bool:
    holder = _holder(place)
    return holder is not None and holder.is_same(name)


def _holder(place: Path) -> RepositoryName | None:
    """Whose a folder is, or will be when its download is at its end."""
    manifest = read_manifest(place if os.path.lexists(place) and not _is_empty(place) else draft_of(place))
    return manifest.name if manifest else None


def _is_empty(place: Path) -> bool:
    return place.is_dir() and not any(place.iterdir())


def _what(place: Path) -> str:
    if not place.is_dir():
        return "a link to nothing" if place.is_symlink() and not place.exists() else "a file"
    names = sorted(path.name for path in place.iterdir())
    listed = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return f"it has {listed}, and a {FILE} that cannot be read" if FILE in names else f"it has {listed}"
