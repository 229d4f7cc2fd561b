"""What a download put into a folder, kept beside it so that `--check` can say which file is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modules.errors import NotFound, UserError
from modules.library.hub import Repository, RepositoryFile, RepositoryName, parse_name, read_file
from modules.library.paths import sha256_of, write_text

FILE = ".download.json"


@dataclass(frozen=True)
class Manifest:
    """Where the files of a folder came from. damaged: those that the last check found to be wrong."""

    repository: str
    branch: str
    commit: str
    files: tuple[RepositoryFile, ...]
    damaged: tuple[str, ...] = ()

    @property
    def name(self) -> RepositoryName:
        return RepositoryName(self.repository, self.branch)

    def file(self, path: str) -> RepositoryFile | None:
        return next((file for file in self.files if file.path == path), None)


@dataclass(frozen=True)
class Checked:
    """The result for one file; problem: None where it is as it was on the hub."""

    path: str
    problem: str | None


def manifest_of(repository: Repository, files: tuple[RepositoryFile, ...]) -> Manifest:
    return Manifest(repository.name.repository, repository.name.branch, repository.commit, files)


def read_manifest(folder: Path) -> Manifest | None:
    """None where a folder has none, or one that does not say what it holds. Of its files, entries that make no sense are left out."""
    try:
        values: Any = json.loads((folder / FILE).read_text(encoding="utf-8"))
        name = parse_name(values["repository"], values["branch"])
        listed = [file for entry in values["files"] if (file := _file_of(entry))]
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError, UserError):
        return None
    files = {file.path: file for file in listed}
    said, commit = values.get("damaged"), values.get("commit")
    damaged = tuple(path for path in files if path in said) if isinstance(said, list) else ()
    return Manifest(
        name.repository, name.branch, commit if isinstance(commit, str) else name.branch, tuple(files.values()), damaged
    )


def _file_of(entry: Any) -> RepositoryFile | None:
    try:
        return read_file(entry["path"], entry["size"], entry.get("sha256"), entry.get("git_sha1"))
    except (TypeError, AttributeError, LookupError, UserError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    write_text(folder / FILE, json.dumps(asdict(manifest), indent=1) + "\n")


def merged(old: Manifest | None, new: Manifest, outdated: Collection[str] = ()) -> Manifest:
    """The files of a folder after more were put into it, and `outdated` were taken away."""
    if old is None:
        return new
    kept = tuple(file for file in old.files if new.file(file.path) is None and file.path not in outdated)
    damaged = tuple(path for path in old.damaged if new.file(path) is None and path not in outdated)
    return Manifest(new.repository, new.branch, new.commit, kept + new.files, damaged)


def check_folder(folder: Path) -> Iterator[Checked]:
    """Read every file that the manifest names, and compare; the next download replaces those that are wrong.

    Raises NotFound where there is no manifest.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise NotFound(f"{folder.name} was not downloaded by this program, so it is not known what its files should be.")
    damaged: list[str] = []
    for file in manifest.files:
        problem = problem_of(folder / file.path, file)
        if problem:
            damaged.append(file.path)
        yield Checked(file.path, problem)
    if tuple(damaged) != manifest.damaged:
        with suppress(OSError):  # into a folder that cannot be written, nothing will be downloaded either
            write_manifest(folder, replace(manifest, damaged=tuple(damaged)))


def problem_of(path: Path, file: RepositoryFile) -> str | None:
    """What is wrong with a file on disk; reads all of it."""
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if file.size is not None and size != file.size:
            return f"has {size} bytes instead of {file.size}"
        if file.sha256:
            return None if sha256_of(path) == file.sha256 else "has another SHA-256"
        if file.git_sha1:
            return None if _git_sha1(path) == file.git_sha1 else "has another content"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _git_sha1(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
