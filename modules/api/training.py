"""Training runs: for administrators by key below /v1/internal/training, and for the page's script by session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from modules.api.auth import key_of_admin
from modules.api.common import Body, sent
from modules.api.errors import REFUSALS
from modules.api.page.dependencies import CurrentWorkspace
from modules.api.page.undo import ChangeNote
from modules.api.training_answers import (
    AdapterInChat,
    Deleted,
    JobEvents,
    JobList,
    JobReply,
    RunDetailView,
    RunList,
    job_reply,
    run_detail,
    run_list,
)
from modules.errors import UserError
from modules.generation.types import TextDelta
from modules.i18n.sentences import said
from modules.training.config import TrainingConfig

if TYPE_CHECKING:
    from modules.app import App


class TrainBody(Body):
    """A run to start."""

    config: TrainingConfig
    """What to train, and how; every setting of the Training tab."""
    queue: bool = False
    """Wait in the queue where another run goes on, instead of refusing."""


class StopBody(Body):
    """How to stop."""

    now: bool = False
    """End at once; what was done since the last checkpoint is lost."""


class ResumeBody(Body):
    """How to go on."""

    queue: bool = False
    """Wait in the queue where another run goes on, instead of refusing."""


class AdapterOfRun(BaseModel):
    """checkpoint: empty takes the finished adapter."""

    checkpoint: str = ""


class MergeBody(AdapterOfRun):
    """name: of the model that is made."""

    name: str = ""


class Question(BaseModel):
    """adapter: the name of a loaded one; None asks the base model."""

    question: str
    adapter: str | None = None


def router(app: App) -> APIRouter:
    """The routes for administrators with a key."""
    guards = [Depends(key_of_admin(app))]
    routes = APIRouter(prefix="/v1/internal/training", tags=["training"], responses=REFUSALS, dependencies=guards)

    @routes.get("/jobs")
    def list_training_jobs(workspace: CurrentWorkspace) -> JobList:
        """Every run, the newest first."""
        return JobList(jobs=[job_reply(job) for job in workspace.training.runs()])

    @routes.post("/jobs")
    def start_training_job(workspace: CurrentWorkspace, body: Annotated[TrainBody, sent(TrainBody)]) -> JobReply:
        """Check the settings and the data, and start a run."""
        return job_reply(workspace.training.start(body.config, queue=body.queue))

    @routes.get("/jobs/{job}")
    def read_training_job(workspace: CurrentWorkspace, job: str) -> JobReply:
        """One run, with its progress."""
        return job_reply(workspace.training.run(job))

    @routes.get("/jobs/{job}/events")
    def read_training_events(workspace: CurrentWorkspace, job: str, start: int = 0) -> JobEvents:
        """What a run tells: steps, losses, samples, checkpoints; `start` is the `next` of the last answer."""
        told = workspace.training.events(job)
        first = max(start, 0)
        fresh = [{"event": type(event).__name__.lower(), **asdict(event)} for event in told[first:]]
        return JobEvents(events=fresh, next=max(len(told), first))

    @routes.post("/jobs/{job}/stop")
    def stop_training_job(
        workspace: CurrentWorkspace, job: str, body: Annotated[StopBody | None, sent(StopBody | None)]
    ) -> JobReply:
        """Save and end after the step that is being computed; or at once."""
        return job_reply(workspace.training.stop(job, now=body is not None and body.now))

    @routes.post("/jobs/{job}/resume")
    def resume_training_job(
        workspace: CurrentWorkspace, job: str, body: Annotated[ResumeBody | None, sent(ResumeBody | None)]
    ) -> JobReply:
        """Go on from the newest complete checkpoint."""
        return job_reply(workspace.training.resume(job, queue=body is not None and body.queue))

    @routes.delete("/jobs/{job}")
    def delete_training_job(workspace: CurrentWorkspace, job: str) -> Deleted:
        """Delete the folder of a run that has ended; its adapter stays."""
        workspace.training.delete(job)
        return Deleted(deleted=job)

    return routes


def page_router() -> APIRouter:
    """Part of the router of chats/, for the Training tab: everyone may look, and administrators change."""
    routes = APIRouter(prefix="/training")
    _add_runs(routes)
    _add_adapters(routes)
    return routes


def _add_runs(routes: APIRouter) -> None:
    @routes.get("")
    def list_runs(workspace: CurrentWorkspace) -> RunList:
        return run_list(workspace)

    @routes.get("/{id}")
    def read_run(workspace: CurrentWorkspace, id: str) -> RunDetailView:
        return run_detail(workspace.training.detail(id))

    @routes.post("/{id}/stop")
    def stop_run(workspace: CurrentWorkspace, id: str) -> JobReply:
        return job_reply(workspace.training.stop(id))

    @routes.post("/{id}/kill")
    def stop_run_now(workspace: CurrentWorkspace, id: str) -> JobReply:
        return job_reply(workspace.training.stop(id, now=True))

    @routes.post("/{id}/resume")
    def resume_run(workspace: CurrentWorkspace, id: str, body: ResumeBody) -> JobReply:
        return job_reply(workspace.training.resume(id, queue=body.queue))

    @routes.delete("/{id}")
    def delete_run(workspace: CurrentWorkspace, id: str) -> ChangeNote:
        name, undo = workspace.training.delete(id)
        return ChangeNote.of(undo, "training.deleted", name=name)


def _add_adapters(routes: APIRouter) -> None:
    @routes.post("/{id}/use")
    def use_in_chat(workspace: CurrentWorkspace, id: str, body: AdapterOfRun) -> AdapterInChat:
        chat, adapter = workspace.training.use_in_chat(id, body.checkpoint)
        return AdapterInChat(chat=chat, adapter=adapter)

    @routes.post("/{id}/adapter")
    def use_adapter(workspace: CurrentWorkspace, id: str, body: AdapterOfRun) -> str:
        """The name of the adapter beside the model."""
        return workspace.training.use_adapter(id, body.checkpoint)

    @routes.post("/{id}/merge")
    def merge(workspace: CurrentWorkspace, id: str, body: MergeBody) -> None:
        workspace.training.merge(id, body.name, body.checkpoint)

    @routes.post("/ask")
    async def ask(workspace: CurrentWorkspace, body: Question) -> StreamingResponse:
        """The text of a reply, as it is made."""
        events = await run_in_threadpool(workspace.training.ask, body.question, body.adapter)

        async def text() -> AsyncIterator[str]:
            try:
                async for event in events:
                    if isinstance(event, TextDelta):
                        yield event.text
            except UserError as error:
                yield f"\n{said(error.message)}"
            finally:
                events.close()

        return StreamingResponse(text(), media_type="text/plain; charset=utf-8")
