"""Downloads that go on while nobody looks: started, watched and cancelled from the page."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from modules.errors import NotFound, UserError
from modules.library.downloads import download, plan_download
from modules.library.fetching import DownloadProgress
from modules.library.file_selection import Wanted
from modules.library.hub import RepositoryName, parse_name
from modules.library.starter import FILE, SIZE, fetch_starter

log = logging.getLogger(__name__)
STARTER = RepositoryName("starter")


@dataclass(frozen=True)
class DownloadJob:
    """A download as it stands now. folder: its name in models/ or loras/, once that is known. error: for "failed"."""

    id: int
    name: RepositoryName
    state: Literal["asking", "running", "done", "failed", "cancelled"] = "asking"
    progress: DownloadProgress | None = None
    folder: str = ""
    error: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class DownloadJobs:
    """One thread for each download. Safe to use from any thread."""

    def __init__(self, models: Path, loras: Path) -> None:
        self._models = models
        self._loras = loras
        self._jobs: dict[int, DownloadJob] = {}
        self._cancelled: dict[int, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def start(
        self, name: str, wanted: Wanted | None = None, *, branch: str = "", then: Callable[[str], None] = lambda folder: None
    ) -> DownloadJob:
        """Begin to fetch ORG/NAME[:BRANCH], or `starter`. Raises UserError for what cannot be a name; the rest is in the job's state.

        then: called with the name of what is there now, once it is.
        """
        repository = parse_name(name, branch)
        with self._lock:
            same = (job for job in self._jobs.values() if job.name == repository and not job.ended)
            if running := next(same, None):
                return running
            job = DownloadJob(len(self._jobs) + 1, repository)
            self._jobs[job.id] = job
            self._cancelled[job.id] = threading.Event()
            work = (job, wanted or Wanted(), then)
            thread = threading.Thread(target=self._run, args=work, name=f"download-{job.id}", daemon=True)
            self._threads.append(thread)
        thread.start()
        return job

    def all(self) -> list[DownloadJob]:
        """Every download since the start of the program, the newest first."""
        with self._lock:
            return list(reversed(self._jobs.values()))

    def get(self, id: int) -> DownloadJob:
        """Raises NotFound."""
        with self._lock:
            if id not in self._jobs:
                raise NotFound(f"There is no download {id}.")
            return self._jobs[id]

    def cancel(self, id: int) -> None:
        """Stop it; what has arrived is kept for the next time. Raises NotFound."""
        self.get(id)
        self._cancelled[id].set()

    def close(self) -> None:
        """Stop all of them."""
        for event in list(self._cancelled.values()):
            event.set()
        for thread in list(self._threads):
            thread.join(timeout=5)

    def _run(self, job: DownloadJob, wanted: Wanted, then: Callable[[str], None]) -> None:
        try:
            if job.name == STARTER:
                self._fetch_starter(job, then)
                return
            plan = plan_download(job.name, wanted, models=self._models, loras=self._loras)
            job = self._change(job, state="running", folder=plan.target.name)
            if self._cancelled[job.id].is_set():
                self._change(job, state="cancelled")
                return
            with closing(download(plan)) as events:
                for progress in events:
                    job = self._change(job, progress=progress)
                    if self._cancelled[job.id].is_set():
                        break
                else:
                    self._done(job, then)
                    return
            self._change(job, state="cancelled")
        except UserError as error:
            self._change(job, state="failed", error=error.message)
        except Exception as error:
            log.exception("downloading %s failed", job.name.repository)
            self._change(job, state="failed", error=f"{job.name.repository} could not be downloaded: {error}")

    def _fetch_starter(self, job: DownloadJob, then: Callable[[str], None]) -> None:
        job = self._change(job, state="running", folder=FILE)
        cancelled = self._cancelled[job.id].is_set
        began = time.monotonic()

        def arrived(size: int) -> None:
            done = min(size, SIZE)
            self._change(job, progress=DownloadProgress(done, SIZE, 0, 1, done / (time.monotonic() - began + 0.001)))

        try:
            fetch_starter(self._models, say=log.info, cancelled=cancelled, arrived=arrived)
        except UserError:
            if not cancelled():
                raise
            self._change(job, state="cancelled")
        else:
            self._done(job, then)

    def _done(self, job: DownloadJob, then: Callable[[str], None]) -> None:
        """What follows begins before this is told, so that at no moment nothing is under way."""
        then(job.folder)
        self._change(job, state="done")

    def _change(self, job: DownloadJob, **changes: object) -> DownloadJob:
        changed = replace(job, **changes)  # type: ignore[arg-type]
        with self._lock:
            self._jobs[job.id] = changed
        return changed
