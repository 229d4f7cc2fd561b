"""Answers about training: a run for programs, and the list and one run with its plots for the page."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from modules.i18n.sentences import said
from modules.services.training import RunDetail, about
from modules.services.workspace import Workspace
from modules.training.jobs import ACTIVE, State, TrainingJob


class JobReply(BaseModel):
    """A run as it stands. reason: why it ended; loss: smoothed; remaining: seconds; output: the adapter or model it made."""

    id: str
    name: str
    state: State
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


class RunView(BaseModel):
    """A run in the page's list. speed: tokens per second; remaining: seconds; usable: it has an adapter that chats can use."""

    id: str
    name: str
    state: State
    active: bool
    resumable: bool
    usable: bool
    reason: str
    step: int
    total: int
    loss: float | None
    speed: float | None
    remaining: float | None
    model: str
    dataset: str
    method: str

    @classmethod
    def of(cls, job: TrainingJob, **more: Any) -> Self:
        """A run, with the fields that a subclass has besides."""
        return cls(
            id=job.id,
            name=job.name,
            state=job.state,
            active=job.state in ACTIVE,
            resumable=job.can_resume,
            usable=job.adapter is not None,
            reason=said(job.reason),
            step=job.step,
            total=job.total_steps,
            loss=job.loss,
            speed=job.tokens_per_second,
            remaining=job.remaining,
            model=job.config.model,
            dataset=job.config.dataset,
            method=job.config.method,
            **more,
        )


class RunList(BaseModel):
    """Every run, the newest first."""

    jobs: list[RunView]
    admin: bool


class SampleReply(BaseModel):
    """A reply to one of the prompts after a step, beside the base model's."""

    step: int
    prompt: str
    reply: str
    base: str


class MergeView(BaseModel):
    """The last merge of a run into a copy of its model. command: what does it, to be repeated by hand."""

    name: str
    state: Literal["running", "done", "failed"]
    command: str
    reason: str


class RunDetailView(RunView):
    """A run with its plots. curves: name → (step, value); commands: to repeat it by hand; data, about: what is trained on what."""

    curves: dict[str, list[tuple[int, float]]]
    samples: list[SampleReply]
    notes: list[str]
    checkpoints: list[str]
    output: str
    merge: MergeView | None
    commands: str
    accelerate: str
    log: str
    data: str
    about: str


class AdapterInChat(BaseModel):
    """A new chat, and the adapter that answers it."""

    chat: int
    adapter: str


def job_reply(job: TrainingJob) -> JobReply:
    """A run for a program."""
    return JobReply(
        id=job.id,
        name=job.name,
        state=job.state,
        reason=said(job.reason),
        step=job.step,
        total_steps=job.total_steps,
        loss=job.loss,
        tokens_per_second=job.tokens_per_second,
        remaining=job.remaining,
        checkpoints=list(job.checkpoints),
        output=job.output,
        config=job.config.model_dump(mode="json", exclude_defaults=True),
    )


def run_list(workspace: Workspace) -> RunList:
    """Every run for the page."""
    return RunList(jobs=[RunView.of(job) for job in workspace.training.runs()], admin=workspace.is_admin)


def run_detail(run: RunDetail) -> RunDetailView:
    """One run for the page."""
    merge = run.merge
    return RunDetailView.of(
        run.job,
        curves=run.curves,
        samples=[SampleReply(step=one.step, prompt=one.prompt, reply=one.reply, base=one.base) for one in run.samples],
        notes=[said(text) for text in run.notes],
        checkpoints=list(run.job.checkpoints) if run.job.config.method != "full" else [],
        output=run.job.output,
        merge=MergeView(name=merge.name, state=merge.state, command=merge.command, reason=said(merge.reason))
        if merge
        else None,
        commands=run.commands,
        accelerate=run.accelerate,
        log=run.log,
        data=said(run.started.data) if run.started else "",
        about=said(about(run.started)) if run.started else "",
    )
