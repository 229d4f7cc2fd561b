"""Fetch the files of a repository into a folder that appears only when it is whole."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modules.errors import Conflict, Unavailable, UserError
from modules.library.disk import need_space, size_text
from modules.library.hub import Repository, RepositoryFile, RepositoryName, file_address, read_repository, sentences
from modules.library.manifest import Manifest, manifest_of, merged, problem_of, read_manifest, write_manifest
from modules.library.transfer import file_size, receive
from modules.library.wanted import Wanted, choose_files, total_size

_STALLED = 30  # seconds without a byte after which a connection is given up and made again
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_HTTP_LIMIT = 50_000_000_000
_EVERY = 0.2  # seconds between two reports


@dataclass(frozen=True)
class FileProgress:
    """A file under way; sizes in bytes. checking: it is there, and its SHA-256 is being compared."""

    path: str
    done: int
    size: int
    checking: bool = False


@dataclass(frozen=True)
class DownloadProgress:
    """How far a download is; sizes in bytes, speed in bytes per second over the last seconds."""

    done: int
    total: int
    files_done: int
    files_total: int
    speed: float
    active: tuple[FileProgress, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.speed if self.speed > 0 else None


@dataclass(frozen=True)
class DownloadPlan:
    """What will be fetched, and the folder that it will be in. present: files that are there already."""

    repository: Repository
    files: tuple[RepositoryFile, ...]
    target: Path
    present: frozenset[str] = frozenset()

    @property
    def missing(self) -> tuple[RepositoryFile, ...]:
        return tuple(file for file in self.files if file.path not in self.present)

    @property
    def draft(self) -> Path:
        """Where the files lie until all of them are there: never taken for a model."""
        return self.target.with_name(f"{self.target.name}.part")


def plan_download(
    name: RepositoryName, wanted: Wanted, *, models: Path, loras: Path, output: Path | None = None, clean: bool = False
) -> DownloadPlan:
    """Ask the hub, and choose files and folder: models/, loras/ for an adapter, or `output`.

    clean: take nothing of what an earlier download left. Raises UserError and its kind.
    """
    repository = read_repository(name)
    files = choose_files(repository.files, wanted)
    _refuse_giants(repository, files)
    target = (output or (loras if repository.is_adapter else models)) / name.folder
    return DownloadPlan(repository, files, target, frozenset() if clean else _present(target, files))


def _refuse_giants(repository: Repository, files: tuple[RepositoryFile, ...]) -> None:
    """The hub itself gives single files over 50 GB by its own protocol only, not by HTTP."""
    giant = next((file for file in files if file.size > _HTTP_LIMIT), None)
    if giant and repository.address == "https://huggingface.co":
        raise UserError(
            f"{giant.path} has {size_text(giant.size)}, and the hub gives files over 50 GB by its own protocol only. "
            f"Fetch it with `hf download {repository.name.repository} --local-dir models/{repository.name.folder}`."
        )


def _present(target: Path, files: tuple[RepositoryFile, ...]) -> frozenset[str]:
    """The files that need not be fetched again: the right size, and not known to be of another version."""
    manifest = read_manifest(target)

    def is_there(file: RepositoryFile) -> bool:
        path = target / file.path
        known = manifest.file(file.path) if manifest else None
        if manifest and file.path in manifest.damaged:
            return False
        return path.is_file() and path.stat().st_size == file.size and (known is None or known == file)

    return frozenset(file.path for file in files if is_there(file))


def download(
    plan: DownloadPlan, *, threads: int = 4, retries: int = 7, clean: bool = False, stalled: float = _STALLED
) -> Generator[DownloadProgress]:
    """Fetch what is missing, a few files at a time; the folder is at its place when the iterator ends.

    Closing the iterator stops: what has arrived stays in NAME.part, and the next download of the same goes on from there.
    Raises UserError and its kind.
    """
    with _alone(plan.draft):
        if clean:
            shutil.rmtree(plan.draft, ignore_errors=True)
        manifest = manifest_of(plan.repository, plan.files)
        _keep_what_fits(plan.draft, manifest)
        arrived = sum(file_size(plan.draft / file.path) for file in plan.missing)
        need_space(plan.target.parent, total_size(plan.missing) - arrived, plan.repository.name.repository)
        plan.draft.mkdir(exist_ok=True)
        write_manifest(plan.draft, manifest)
        transfer = _Transfer(plan, retries, stalled)
        yield from _fetch_all(transfer, threads)
        _put_in_place(plan, manifest)
        yield transfer.progress()


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


def _keep_what_fits(draft: Path, manifest: Manifest) -> None:
    """Of an interrupted download, keep the files that are still the same on the hub."""
    before = read_manifest(draft)
    if before is None:
        shutil.rmtree(draft, ignore_errors=True)
        return
    for file in before.files:
        if manifest.file(file.path) != file:
            (draft / file.path).unlink(missing_ok=True)


def _put_in_place(plan: DownloadPlan, manifest: Manifest) -> None:
    if not plan.target.exists():
        plan.draft.rename(plan.target)
        return
    for file in plan.missing:
        place = plan.target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(plan.draft / file.path, place)
    write_manifest(plan.target, merged(read_manifest(plan.target), manifest))
    shutil.rmtree(plan.draft)


# --- the transfer


class _Cancelled(Exception):
    """Somebody closed the iterator."""


@dataclass
class _Transfer:
    """What the threads of one download share."""

    plan: DownloadPlan
    retries: int
    stalled: float
    cancelled: threading.Event = field(default_factory=threading.Event)
    _done: dict[str, int] = field(default_factory=dict)
    _active: dict[str, bool] = field(default_factory=dict)
    _finished: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _history: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=25))

    def fetch(self, file: RepositoryFile) -> None:
        """Fetch one file, going on where it was interrupted, and compare its SHA-256."""
        path = self.plan.draft / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._note(file, file_size(path))
        self._fetch_with_retries(file, path)
        self._note(file, file.size, checking=True)
        if problem := problem_of(path, file):
            path.unlink(missing_ok=True)
            raise Unavailable(f"{file.path} arrived damaged: it {problem}. Start the download again.")
        with self._lock:
            del self._active[file.path]
            self._finished.add(file.path)

    def _fetch_with_retries(self, file: RepositoryFile, path: Path) -> None:
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        failures = 0
        while file_size(path) < file.size or not path.exists():
            before = file_size(path)
            try:
                self._stream(file, path)
                if file_size(path) == before and file.size:
                    raise httpx2.RemoteProtocolError("nothing came")
            except (httpx2.TransportError, httpx2.StreamError, HfHubHTTPError) as error:
                failures = failures + 1 if file_size(path) == before else 1
                refused = isinstance(error, HfHubHTTPError) and error.response.status_code not in _TRANSIENT
                if refused or failures > self.retries:
                    with sentences(self.plan.repository.name):
                        raise
                if self.cancelled.wait(min(0.1 * 2**failures, 10)):
                    raise _Cancelled from error

    def _stream(self, file: RepositoryFile, path: Path) -> None:
        """One connection; raises _Cancelled in its middle when somebody has closed the iterator."""
        from huggingface_hub.utils import build_hf_headers

        def received(done: int) -> None:
            if self.cancelled.is_set():
                raise _Cancelled
            self._note(file, done)

        address = file_address(self.plan.repository, file.path)
        receive(address, path, headers=build_hf_headers(), stalled=self.stalled, received=received)

    def _note(self, file: RepositoryFile, done: int, checking: bool = False) -> None:
        with self._lock:
            self._done[file.path] = done
            self._active[file.path] = checking

    def progress(self) -> DownloadProgress:
        sizes = {file.path: file.size for file in self.plan.files}
        with self._lock:
            present = sum(sizes[path] for path in self.plan.present)
            done = present + sum(self._done.values())
            active = tuple(
                FileProgress(path, self._done[path], sizes[path], checking) for path, checking in self._active.items()
            )
            files_done = len(self.plan.present) + len(self._finished)
        now = time.monotonic()
        self._history.append((now, done))
        begin, before = self._history[0]
        speed = max(done - before, 0) / (now - begin) if now > begin else 0.0
        return DownloadProgress(done, total_size(self.plan.files), files_done, len(self.plan.files), speed, active)


def _fetch_all(transfer: _Transfer, threads: int) -> Generator[DownloadProgress]:
    # Small files first: the folder soon says what it is, and a refusal (a gated model) comes before gigabytes do.
    files = sorted(transfer.plan.missing, key=lambda file: file.size)
    pool = ThreadPoolExecutor(max_workers=max(threads, 1), thread_name_prefix="download")
    try:
        running: set[Future[None]] = {pool.submit(transfer.fetch, file) for file in files}
        while running:
            done, running = wait(running, timeout=_EVERY, return_when=FIRST_EXCEPTION)
            for future in done:
                _result(future, transfer.plan)
            yield transfer.progress()
    finally:
        transfer.cancelled.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[None], plan: DownloadPlan) -> None:
    try:
        future.result()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(
                f"The disk of {plan.target.parent} is full. Make room, and start the download again: it goes on from here."
            ) from None
        raise
