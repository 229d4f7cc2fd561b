"""The files of one download on their way: a few at a time, taken up where a line broke, each compared with what the hub says."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from modules.errors import Unavailable
from modules.library.hub import Repository, RepositoryFile, file_address, sentences
from modules.library.manifest import problem_of
from modules.library.paths import sha256_of
from modules.library.real_files import is_page
from modules.library.transfer import WrongAnswer, file_size, page_instead, receive

_TRANSIENT = (408, 429, 500, 502, 503, 504)
_EVERY = 0.2  # seconds between two reports
_PAUSE = 0.1  # seconds before another try, twice as long each time
_LONGEST_PAUSE = 10
_LONGEST_ASKED = 120  # seconds that a server may ask to wait


@dataclass(frozen=True)
class FileProgress:
    """A file under way; sizes in bytes, None where unknown. checking: it is there, and its SHA-256 is being compared."""

    path: str
    done: int
    size: int | None
    checking: bool = False


@dataclass(frozen=True)
class DownloadProgress:
    """How far a download is; sizes in bytes (total: None where unknown), speed in bytes per second over the last seconds."""

    done: int
    total: int | None
    files_done: int
    files_total: int
    speed: float
    active: tuple[FileProgress, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.speed if self.speed > 0 and self.total is not None else None


class _Cancelled(Exception):
    """Somebody closed the iterator."""


@dataclass
class Fetching:
    """What the threads of one download share. files: all of it, of which those of the paths `present` are not fetched."""

    repository: Repository
    files: tuple[RepositoryFile, ...]
    present: frozenset[str]
    draft: Path
    retries: int
    stalled: float
    cancelled: threading.Event = field(default_factory=threading.Event)
    _done: dict[str, int] = field(default_factory=dict)
    _active: dict[str, bool] = field(default_factory=dict)
    _finished: dict[str, RepositoryFile] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _history: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=25))

    def all(self, threads: int) -> Generator[DownloadProgress]:
        """Fetch every file, and say a few times a second how far it is. Closing stops. Raises UserError and its kind, OSError."""
        # Small files first: the folder soon says what it is, and a refusal (a gated model) comes before gigabytes do.
        files = sorted((file for file in self.files if file.path not in self.present), key=lambda file: file.size or 0)
        pool = ThreadPoolExecutor(max_workers=max(threads, 1), thread_name_prefix="download")
        try:
            running: set[Future[None]] = {pool.submit(self._fetch, file) for file in files}
            while running:
                done, running = wait(running, timeout=_EVERY, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                yield self.progress()
        finally:
            self.cancelled.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def fetched(self) -> tuple[RepositoryFile, ...]:
        """All files, with the size and SHA-256 of those of which the hub said neither."""
        return tuple(self._finished.get(file.path, file) for file in self.files)

    def _fetch(self, file: RepositoryFile) -> None:
        """Fetch one file, going on where it was interrupted, and compare its SHA-256."""
        path = self.draft / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = file_size(path) > 0
        problem = self._problem_once_here(file, path)
        if problem and begun:  # what an earlier download left was not what it should have been
            path.unlink(missing_ok=True)
            problem = self._problem_once_here(file, path)
        if problem:
            page = is_page(path)
            path.unlink(missing_ok=True)
            if page:
                raise page_instead(path, self.repository.address)
            raise Unavailable(f"{file.path} arrived damaged: it {problem}. Start the download again.")
        if not file.has_hash:
            file = replace(file, size=file_size(path), sha256=sha256_of(path))
        with self._lock:
            del self._active[file.path]
            self._finished[file.path] = file

    def _problem_once_here(self, file: RepositoryFile, path: Path) -> str | None:
        self._note(file, file_size(path))
        self._receive(file, path)
        self._note(file, file_size(path), checking=True)
        if not file.has_hash and is_page(path):
            return "is a web page"
        return problem_of(path, file)

    def _receive(self, file: RepositoryFile, path: Path) -> None:
        """As many connections as it takes, while each brings something, or a few in vain."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        failures, furthest = 0, file_size(path)
        while file.size is None or file_size(path) != file.size or not path.exists():
            try:
                self._connect(file, path)
                return
            except (httpx2.HTTPError, httpx2.StreamError, HfHubHTTPError, WrongAnswer) as error:
                further = file_size(path) > furthest
                failures = 1 if further else failures + 1
                furthest = max(furthest, file_size(path))
                if _is_final(error) or failures > self.retries:
                    self._give_up(file, error)
                if self.cancelled.wait(_pause(error, failures)):
                    raise _Cancelled from error

    def _connect(self, file: RepositoryFile, path: Path) -> None:
        """One connection; raises _Cancelled in its middle when somebody has closed the iterator."""
        from huggingface_hub.utils import build_hf_headers

        def received(done: int) -> None:
            if self.cancelled.is_set():
                raise _Cancelled
            self._note(file, done)

        address = file_address(self.repository, file.path)
        receive(address, path, headers=build_hf_headers(), stalled=self.stalled, received=received, size=file.size)

    def _give_up(self, file: RepositoryFile, error: Exception) -> NoReturn:
        if isinstance(error, WrongAnswer):
            raise Unavailable(
                f"{self.repository.address} does not send {file.path} as it lists it: {error}. "
                "Start the download again later, or set HF_ENDPOINT to another mirror."
            ) from None
        with sentences(self.repository.name):
            raise error

    def _note(self, file: RepositoryFile, done: int, checking: bool = False) -> None:
        with self._lock:
            self._done[file.path] = done
            self._active[file.path] = checking

    def progress(self) -> DownloadProgress:
        sizes = {file.path: file.size for file in self.files}
        with self._lock:
            present = sum(sizes[path] or 0 for path in self.present)
            done = present + sum(self._done.values())
            active = tuple(
                FileProgress(path, self._done[path], sizes[path], checking) for path, checking in self._active.items()
            )
            files_done = len(self.present) + len(self._finished)
        known = [size for size in sizes.values() if size is not None]
        total = sum(known) if len(known) == len(sizes) else None
        now = time.monotonic()
        self._history.append((now, done))
        begin, before = self._history[0]
        speed = max(done - before, 0) / (now - begin) if now > begin else 0.0
        return DownloadProgress(done, total, files_done, len(self.files), speed, active)


def _is_final(error: Exception) -> bool:
    """Whether the next try would be answered in the same way."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code not in _TRANSIENT
    return isinstance(error, (httpx2.TooManyRedirects, httpx2.UnsupportedProtocol))


def _pause(error: Exception, failures: int) -> float:
    """Seconds until the next try: what the server asks for, else a little longer each time."""
    from huggingface_hub.errors import HfHubHTTPError

    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    usual = min(_PAUSE * 2**failures, _LONGEST_PAUSE)
    return max(usual, min(int(asked), _LONGEST_ASKED)) if asked.isascii() and asked.isdigit() else usual
