"""Fetch the files of a repository into a folder that appears only when it is whole."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from modules.errors import Conflict, Unavailable, UserError
from modules.library.destination import destination, draft_of, not_own, refuse_strangers, strangers
from modules.library.disk import need_space, size_text
from modules.library.fetching import DownloadProgress, Fetching
from modules.library.file_selection import Wanted, choose_files, outdated, total_size
from modules.library.hub import Repository, RepositoryFile, RepositoryName, completed, read_repository
from modules.library.manifest import Manifest, manifest_of, merged, read_manifest, write_manifest
from modules.library.placing import bring_back, put_in_place
from modules.library.transfer import file_size

_STALLED = 30  # seconds without a byte after which a connection is given up and made again
_HTTP_LIMIT = 50_000_000_000


@dataclass(frozen=True)
class DownloadPlan:
    """What will be fetched, and the folder that it will be in.

    present: files that are there already. outdated: files of an earlier download that the repository no longer has.
    """

    repository: Repository
    files: tuple[RepositoryFile, ...]
    target: Path
    present: frozenset[str] = frozenset()
    outdated: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[RepositoryFile, ...]:
        return tuple(file for file in self.files if file.path not in self.present)

    @property
    def total(self) -> int | None:
        """Bytes of all files; None where the hub does not say of one of them."""
        return None if any(file.size is None for file in self.files) else total_size(self.files)

    @property
    def draft(self) -> Path:
        """Where the files lie until all of them are there: never taken for a model."""
        return draft_of(self.target)


def plan_download(
    name: RepositoryName, wanted: Wanted, *, models: Path, loras: Path, output: Path | None = None, clean: bool = False
) -> DownloadPlan:
    """Ask the hub, and choose files and folder: models/, loras/ for an adapter, or `output`.

    clean: take nothing of what an earlier download left. Raises UserError and its kind, Conflict where something else lies there.
    """
    repository = read_repository(name)
    files = choose_files(repository.files, wanted)
    with _disk_told(output or models):
        target = destination(name, output or (loras if repository.is_adapter else models))
        files = tuple(completed(repository, file) for file in files)
        _refuse_giants(repository, files, target)
        refuse_strangers(target, files)
        manifest = read_manifest(target)
        old = outdated(manifest.files if manifest else (), repository.files, files, wanted)
        present = frozenset() if clean else _present(target, manifest, files)
    return DownloadPlan(repository, files, target, present, tuple(file.path for file in old))


def _refuse_giants(repository: Repository, files: tuple[RepositoryFile, ...], target: Path) -> None:
    """The hub itself gives single files over 50 GB by its own protocol only, not by HTTP."""
    giant = next((file for file in files if file.size and file.size > _HTTP_LIMIT), None)
    if giant and giant.size and repository.address == "https://huggingface.co":
        raise UserError(
            f"{giant.path} has {size_text(giant.size)}, and the hub gives files over 50 GB by its own protocol only. "
            f"Fetch it with `hf download {repository.name.repository} --local-dir {target.parent.name}/{target.name}`."
        )


def _present(target: Path, manifest: Manifest | None, files: tuple[RepositoryFile, ...]) -> frozenset[str]:
    """The files that need not be fetched again: the right size, and known to be of this version."""

    def is_there(file: RepositoryFile) -> bool:
        known = manifest.file(file.path) if manifest else None
        if manifest is None or known is None or file.path in manifest.damaged or not known.is_same(file):
            return False
        return (target / file.path).is_file() and file_size(target / file.path) == known.size

    # What lies there without being known to the manifest was compared already: it is the same.
    return frozenset(file.path for file in files if is_there(file)) | {file.path for file in strangers(target, files)}


def download(
    plan: DownloadPlan, *, threads: int = 4, retries: int = 7, clean: bool = False, stalled: float = _STALLED
) -> Generator[DownloadProgress]:
    """Fetch what is missing, a few files at a time; the folder is at its place when the iterator ends.

    Closing the iterator stops: what has arrived stays in NAME.part, and the next download of the same goes on from there.
    Raises UserError and its kind.
    """
    with _disk_told(plan.target.parent), _alone(plan.draft):
        _refuse_others(plan)
        bring_back(plan.draft, plan.target)
        if clean:
            shutil.rmtree(plan.draft, ignore_errors=True)
        manifest = manifest_of(plan.repository, plan.files)
        _keep_what_fits(plan.draft, manifest)
        arrived = sum(min(file_size(plan.draft / file.path), file.size or 0) for file in plan.missing)
        need_space(plan.draft.parent, total_size(plan.missing) - arrived, plan.repository.name.repository)
        plan.draft.mkdir(exist_ok=True)
        write_manifest(plan.draft, manifest)
        fetching = Fetching(plan.repository, plan.files, plan.present, plan.draft, retries, stalled)
        yield from fetching.all(threads)
        _put_in_place(plan, replace(manifest, files=fetching.fetched()))
        yield fetching.progress()


@contextmanager
def _alone(draft: Path) -> Iterator[None]:
    """Two downloads into one folder would spoil each other."""
    from filelock import FileLock, Timeout

    draft.parent.mkdir(parents=True, exist_ok=True)
    lock = draft.with_name(f".{draft.name}.lock")
    try:
        # The iterator may be stepped by different threads.
        with FileLock(lock, timeout=0, thread_local=False):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout:
        raise Conflict(f"{draft.stem} is being downloaded already.") from None


@contextmanager
def _disk_told(folder: Path) -> Iterator[None]:
    """Raises Unavailable in place of what the disk says: no room, no permission, something in the way."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(
                f"The disk of {folder} is full. Make room, and start the download again: it goes on from here."
            ) from None
        raise Unavailable(f"{error.filename or folder}: {error.strerror or error}. Choose another folder.") from error


def _refuse_others(plan: DownloadPlan) -> None:
    """Much can be put there while a download lasts. Raises Conflict."""
    if problem := not_own(plan.target, plan.repository.name):
        raise Conflict(problem)


def _keep_what_fits(draft: Path, manifest: Manifest) -> None:
    """Of an interrupted download, keep the files that are still the same on the hub."""
    before = read_manifest(draft)
    if before is None:
        shutil.rmtree(draft, ignore_errors=True)
        return
    for file in before.files:
        now = manifest.file(file.path)
        same = now is not None and (file.is_same(now) or (file == now and before.commit == manifest.commit))
        if not same or (now and now.size is not None and file_size(draft / file.path) > now.size):
            (draft / file.path).unlink(missing_ok=True)


def _put_in_place(plan: DownloadPlan, manifest: Manifest) -> None:
    _refuse_others(plan)
    if not plan.target.exists():
        write_manifest(plan.draft, manifest)
        plan.draft.rename(plan.target)
        return
    refuse_strangers(plan.target, plan.missing)
    whole = merged(read_manifest(plan.target), manifest, plan.outdated)
    put_in_place(plan.draft, plan.target, [file.path for file in plan.missing], plan.outdated, whole)
