"""Downloads of models and adapters below /v1/internal, for administrators: started, watched and cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from modules.api.auth import key_of_admin
from modules.api.common import Body, sent
from modules.api.errors import REFUSALS
from modules.library.download_jobs import DownloadJob
from modules.library.file_selection import Wanted

if TYPE_CHECKING:
    from modules.app import App


class DownloadBody(Body):
    """What to fetch from the Hub."""

    model: str
    """ORG/NAME, ORG/NAME:BRANCH, or the address of its page."""
    quant: str = ""
    """Of a GGUF repository: which quantisation, such as Q4_K_M; empty chooses one."""
    specific_file: str = ""
    """This file alone."""
    exclude_pattern: str = ""
    """Files whose path fits this regular expression are left out."""
    text_only: bool = False
    """Only the small files: no weights."""


class DownloadReply(BaseModel):
    """A download as it stands; sizes in bytes, speed in bytes per second. It goes on while nobody looks."""

    id: int
    model: str
    branch: str
    state: Literal["asking", "running", "done", "failed", "cancelled"]
    folder: str
    error: str
    done: int = 0
    total: int = 0
    files_done: int = 0
    files_total: int = 0
    speed: float = 0.0
    seconds_left: float | None = None


class DownloadList(BaseModel):
    """Every download since the start of the server, the newest first."""

    downloads: list[DownloadReply]


def router(app: App) -> APIRouter:
    """The routes of downloads."""
    guards = [Depends(key_of_admin(app.access))]
    routes = APIRouter(prefix="/v1/internal", tags=["administration"], responses=REFUSALS, dependencies=guards)

    @routes.post("/download")
    def start_download(body: Annotated[DownloadBody, sent(DownloadBody)]) -> DownloadReply:
        """Begin to fetch a model or an adapter; the same one again joins the download that runs."""
        wanted = Wanted(body.text_only, body.specific_file, body.exclude_pattern, body.quant)
        return _reply(app.downloads.start(body.model, wanted))

    @routes.get("/downloads")
    def list_downloads() -> DownloadList:
        """Every download, with its progress."""
        return DownloadList(downloads=[_reply(job) for job in app.downloads.all()])

    @routes.get("/downloads/{number}")
    def read_download(number: int) -> DownloadReply:
        """One download, with its progress."""
        return _reply(app.downloads.get(number))

    @routes.post("/downloads/{number}/cancel")
    def cancel_download(number: int) -> DownloadReply:
        """Stop a download; what has arrived is kept for the next time."""
        app.downloads.cancel(number)
        return _reply(app.downloads.get(number))

    return routes


def _reply(job: DownloadJob) -> DownloadReply:
    reply = DownloadReply(
        id=job.id, model=job.name.repository, branch=job.name.branch, state=job.state, folder=job.folder, error=job.error
    )
    if (progress := job.progress) is None:
        return reply
    return reply.model_copy(
        update={
            "done": progress.done,
            "total": progress.total,
            "files_done": progress.files_done,
            "files_total": progress.files_total,
            "speed": progress.speed,
            "seconds_left": progress.seconds_left,
        }
    )
