"""What the Training tab shows and does, as plain data: the list, one run with its plots, and its adapter in chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from modules.app import App
from modules.errors import Conflict, UserError
from modules.generation.sampling import SamplingParams
from modules.generation.stream import EventStream
from modules.generation.types import GenerationRequest, Message
from modules.i18n.sentences import said
from modules.loaders.options import LoadOptions
from modules.training import events
from modules.training.jobs import ACTIVE, TrainingJob

POINTS = 400
"""The most points of a curve that a browser is sent."""
COMPARED_TOKENS = 300
"""The most tokens of a reply that stands beside the base's."""


def list_view(app: App, owner: str) -> dict[str, Any]:
    """Every run, the newest first."""
    return {"jobs": [job_view(job) for job in app.training.list()], "admin": app.access.is_admin(owner)}


def job_view(job: TrainingJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state,
        "active": job.state in ACTIVE,
        "resumable": job.can_resume,
        "usable": job.adapter is not None,
        "reason": said(job.reason),
        "step": job.step,
        "total": job.total_steps,
        "loss": job.loss,
        "speed": job.tokens_per_second,
        "remaining": job.remaining,
        "model": job.config.model,
        "dataset": job.config.dataset,
        "method": job.config.method,
    }


def detail_view(app: App, id: str) -> dict[str, Any]:
    """One run with its curves (up to POINTS points each), replies, checkpoints, commands, and its last words."""
    job = app.training.get(id)
    told = app.training.events(id)
    steps = [event for event in told if isinstance(event, events.Stepped)]
    smooth = events.smoothed(event.loss for event in steps)
    started = next((event for event in reversed(told) if isinstance(event, events.Started)), None)
    curves = {
        "loss": [(event.step, event.loss) for event in steps],
        "smoothed": [(event.step, value) for event, value in zip(steps, smooth, strict=True)],
        "evaluated": [(event.step, event.loss) for event in told if isinstance(event, events.Evaluated)],
        "rate": [(event.step, event.learning_rate) for event in steps],
        "norm": [(event.step, event.gradient_norm) for event in steps],
        "speed": [(event.step, event.tokens / event.seconds) for event in steps],
        "memory": [(event.step, event.memory) for event in steps],
        "preferred": [(event.step, event.preferred) for event in steps if event.preferred is not None],
    }
    samples = [event for event in told if isinstance(event, events.Sampled)]
    return {
        **job_view(job),
        "curves": {name: thinned(points) for name, points in curves.items()},
        "samples": [{"step": one.step, "prompt": one.prompt, "reply": one.reply, "base": one.base} for one in samples[-20:]],
        "notes": [said(event.text) for event in told if isinstance(event, events.Noted)],
        "checkpoints": list(job.checkpoints) if job.config.method != "full" else [],
        "output": job.output,
        "merge": asdict(merge) | {"reason": said(merge.reason)} if (merge := app.training.merging(id)) else None,
        "commands": app.training.commands(id),
        "accelerate": app.training.accelerate_file(id),
        "log": app.training.log_tail(id, 12) if job.state in ("failed", "interrupted") else "",
        "data": said(started.data) if started else "",
        "about": said(about(started)) if started else "",
    }


def about(started: events.Started) -> str:
    """Where and how much is trained, in one line."""
    share = started.trainable / started.parameters if started.parameters else 0
    processes = f" × {started.processes}" if started.processes > 1 else ""
    return f"{started.device}{processes}, {started.dtype}, {started.trainable:,} of {started.parameters:,} parameters ({share:.2%})"


def thinned(points: Sequence[tuple[int, float]], most: int = POINTS) -> list[tuple[int, float]]:
    """At most `most` points: each stands for its neighbours by their mean, the last one for itself."""
    if len(points) <= most:
        return list(points)
    size = -(-len(points) // (most - 1))
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups[:-1]] + [points[-1]]


def use_in_chat(app: App, owner: str, id: str, checkpoint: str = "") -> dict[str, Any]:
    """Load the run's adapter (or that of a checkpoint) beside the model, and begin a chat that uses it. Raises UserError."""
    name = use_adapter(app, owner, id, checkpoint)
    chat = app.store.create_chat(owner, settings={"adapter": name})
    return {"chat": chat.id, "adapter": name}


def use_adapter(app: App, owner: str, id: str, checkpoint: str | None) -> str:
    """Have the run's adapter (or that of a checkpoint) beside the model; its name there.

    The model is loaded only where another one, or none, is there. Raises UserError.
    """
    job = app.training.get(id)
    if job.config.method == "full":
        raise UserError(f"This run made a whole model: load {job.name} on the Models tab.")
    checkpoint = checkpoint or job.adapter
    if checkpoint is None:
        raise Conflict(f"{job.name} is {job.state} and has no adapter yet. Choose one of its checkpoints.")
    app.training.let_go(id)
    if checkpoint:
        name = app.training.use_checkpoint(id, checkpoint, lambda old: app.trash.undoable(owner, "adapter", old.name, [old]))
    else:
        name = job.name
    loaded = app.engine.loaded
    if loaded is None or loaded.name != app.models.find(job.config.model).name:
        loaded = app.load_model(job.config.model, LoadOptions())
    if not loaded.capabilities.adapters:
        raise UserError(f"{loaded.name} cannot take adapters as it is loaded now. Load it with the transformers loader.")
    if name in loaded.adapters:
        loaded.unload_adapter(name)
    loaded.load_adapter(name, str(app.loras.find(name).path))
    return name


def ask(app: App, question: str, adapter: str | None) -> EventStream:
    """The reply of the loaded model to one question, with or without an adapter, without chance. Raises UserError."""
    if not question.strip():
        raise UserError("Write a question first.")
    sampling = SamplingParams(max_tokens=COMPARED_TOKENS, temperature=0.0)
    return app.engine.stream(GenerationRequest((Message("user", question),), sampling, adapter=adapter))
