"""Training jobs below /v1/internal, for administrators: started, watched, stopped, resumed and deleted."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from modules.api.auth import key_of_admin
from modules.api.common import Body, sent
from modules.api.errors import REFUSALS
from modules.training.config import TrainingConfig
from modules.training.jobs import TrainingJob

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


class JobReply(BaseModel):
    """A run as it stands. reason: why it ended; loss: smoothed; remaining: seconds; output: the adapter or model it made."""

    id: str
    name: str
    state: Literal["queued", "starting", "running", "stopping", "done", "stopped", "failed", "interrupted", "new"]
    reason: str
    step: int
    total_steps: int
    loss: float | None
    tokens_per_second: float | None
    remaining: float | None
    checkpoints: list[str]
    output: str
    config: dict[str, Any] = Field(description="Where it differs from the defaults.")


class JobList(BaseModel):
    """Every run, the newest first."""

    jobs: list[JobReply]


class JobEvents(BaseModel):
    """What a run has told since the event that was asked for; next: where to go on asking."""

    events: list[dict[str, Any]]
    next: int


class Deleted(BaseModel):
    """The run is gone; its adapter stays."""

    deleted: str


def router(app: App) -> APIRouter:
    """The routes of training."""
    guards = [Depends(key_of_admin(app.access))]
    routes = APIRouter(prefix="/v1/internal/training", tags=["training"], responses=REFUSALS, dependencies=guards)

    @routes.get("/jobs")
    def list_training_jobs() -> JobList:
        """Every run, the newest first."""
        return JobList(jobs=[_reply(job) for job in app.training.list()])

    @routes.post("/jobs")
    def start_training_job(body: Annotated[TrainBody, sent(TrainBody)]) -> JobReply:
        """Check the settings and the data, and start a run."""
        return _reply(app.training.start(body.config, queue=body.queue))

    @routes.get("/jobs/{job}")
    def read_training_job(job: str) -> JobReply:
        """One run, with its progress."""
        return _reply(app.training.get(job))

    @routes.get("/jobs/{job}/events")
    def read_training_events(job: str, start: int = 0) -> JobEvents:
        """What a run tells: steps, losses, samples, checkpoints; `start` is the `next` of the last answer."""
        told = app.training.events(job)
        first = max(start, 0)
        fresh = [{"event": type(event).__name__.lower(), **asdict(event)} for event in told[first:]]
        return JobEvents(events=fresh, next=max(len(told), first))

    @routes.post("/jobs/{job}/stop")
    def stop_training_job(job: str, body: Annotated[StopBody | None, sent(StopBody | None)]) -> JobReply:
        """Save and end after the step that is being computed; or at once."""
        (app.training.stop_now if body is not None and body.now else app.training.stop)(job)
        return _reply(app.training.get(job))

    @routes.post("/jobs/{job}/resume")
    def resume_training_job(job: str, body: Annotated[ResumeBody | None, sent(ResumeBody | None)]) -> JobReply:
        """Go on from the newest complete checkpoint."""
        return _reply(app.training.resume(job, queue=body is not None and body.queue))

    @routes.delete("/jobs/{job}")
    def delete_training_job(job: str) -> Deleted:
        """Delete the folder of a run that has ended; its adapter stays."""
        app.training.delete(job)
        return Deleted(deleted=job)

    return routes


def _reply(job: TrainingJob) -> JobReply:
    return JobReply(
        id=job.id,
        name=job.name,
        state=job.state,
        reason=job.reason,
        step=job.step,
        total_steps=job.total_steps,
        loss=job.loss,
        tokens_per_second=job.tokens_per_second,
        remaining=job.remaining,
        checkpoints=list(job.checkpoints),
        output=job.output,
        config=job.config.model_dump(mode="json", exclude_defaults=True),
    )
