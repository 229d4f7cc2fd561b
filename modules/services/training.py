"""Training runs: started, watched, stopped, deleted, merged, and their adapters in chats. What changes something is for administrators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modules.errors import Conflict, UserError
from modules.generation.sampling import SamplingParams
from modules.generation.stream import EventStream
from modules.generation.types import GenerationRequest, Message
from modules.library.trash import Undo
from modules.loaders.options import LoadOptions
from modules.services.base import Service
from modules.training import events
from modules.training.config import TrainingConfig
from modules.training.formats import list_formats
from modules.training.jobs import TrainingJob
from modules.training.merging import Merge
from modules.training.recipes import Recipe, list_recipes, read_recipe
from modules.training.rows import list_datasets

POINTS = 400
"""The most points of a curve that a browser is sent."""
COMPARED_TOKENS = 300
"""The most tokens of a reply that stands beside the base's."""
SAMPLES = 20
"""The most sample replies of a run that are shown."""
LOG_LINES = 12
"""How many lines of its log are shown of a run that failed."""


@dataclass(frozen=True)
class RunDetail:
    """One run with its curves and its words. started: where and how much is trained, None before it has begun.

    curves: name → (step, value), up to POINTS each. samples: the last SAMPLES. log: the last LOG_LINES of a run that failed.
    """

    job: TrainingJob
    curves: dict[str, list[tuple[int, float]]]
    samples: tuple[events.Sampled, ...]
    notes: tuple[str, ...]
    started: events.Started | None
    merge: Merge | None
    commands: str
    accelerate: str
    log: str


@dataclass(frozen=True)
class FormChoices:
    """What the settings of a new run can be chosen from, by the name of the setting. model: the one to begin with."""

    settings: dict[str, tuple[str, ...]]
    recipes: tuple[str, ...]
    model: str


class Training(Service):
    """Runs, and their adapters. Everyone may look."""

    # --- the list, and one run

    def runs(self) -> list[TrainingJob]:
        """Every run, the newest first."""
        return self.app.training.list()

    def run(self, id_: str) -> TrainingJob:
        """One run, with its progress. Raises NotFound."""
        return self.app.training.get(id_)

    def events(self, id_: str) -> list[events.TrainingEvent]:
        """Everything that a run has told. Raises NotFound."""
        return self.app.training.events(id_)

    def detail(self, id_: str) -> RunDetail:
        """One run with its curves, replies, commands, and its last words. Raises NotFound."""
        runs, job, told = self.app.training, self.run(id_), self.events(id_)
        samples = [event for event in told if isinstance(event, events.Sampled)]
        return RunDetail(
            job=job,
            curves=curves_of(told),
            samples=tuple(samples[-SAMPLES:]),
            notes=tuple(event.text for event in told if isinstance(event, events.Noted)),
            started=next((event for event in reversed(told) if isinstance(event, events.Started)), None),
            merge=runs.merging(id_),
            commands=runs.commands(id_),
            accelerate=runs.accelerate_file(id_),
            log=runs.log_tail(id_, LOG_LINES) if job.state in ("failed", "interrupted") else "",
        )

    # --- what changes a run

    def start(self, config: TrainingConfig, *, queue: bool = False) -> TrainingJob:
        """Check the settings and the data, and start a run; or queue it where another goes on. Raises UserError, Forbidden."""
        self.require_admin()
        return self.app.training.start(config, queue=queue)

    def stop(self, id_: str, *, now: bool = False) -> TrainingJob:
        """Save and end after the step that is being computed. now: end at once, and lose what is newer than the last checkpoint."""
        self.require_admin()
        (self.app.training.stop_now if now else self.app.training.stop)(id_)
        return self.run(id_)

    def resume(self, id_: str, *, queue: bool = False) -> TrainingJob:
        """Go on from the newest complete checkpoint. Raises NotFound, Conflict, Forbidden."""
        self.require_admin()
        return self.app.training.resume(id_, queue=queue)

    def delete(self, id_: str) -> tuple[str, Undo]:
        """Take the folder of a run that has ended away; its adapter stays. Returns its name, too. Raises NotFound, Conflict, Forbidden."""
        self.require_admin()
        folder, name = self.app.training.deletable(id_), self.run(id_).name
        with self.app.trash.undoable(self.owner, "run", name, [folder.path]) as undo:
            pass
        return name, undo

    def merge(self, id_: str, name: str, checkpoint: str = "") -> None:
        """Begin to write the run's adapter (or that of a checkpoint) into a copy of its model, models/`name`. Raises UserError."""
        self.require_admin()
        self.app.training.merge(id_, name, checkpoint)

    # --- its adapter in chats

    def use_in_chat(self, id_: str, checkpoint: str = "") -> tuple[int, str]:
        """(The id of a new chat that the run's adapter answers, the adapter's name). Raises UserError, Forbidden."""
        name = self.use_adapter(id_, checkpoint)
        return self.history.chats.create(settings={"adapter": name}).id, name

    def use_adapter(self, id_: str, checkpoint: str | None) -> str:
        """Have the run's adapter (or that of a checkpoint) beside the model; its name there.

        The model is loaded only where another one, or none, is there. Raises UserError, Forbidden.
        """
        self.require_admin()
        name, job = self._adapter(id_, checkpoint), self.run(id_)
        loaded = self.app.manager.loaded
        if loaded is None or loaded.name != self.app.models.find(job.config.model).name:
            self.app.load_model(job.config.model, LoadOptions())
        with self.app.manager.lease() as model:
            if not model.capabilities.adapters:
                raise UserError(f"{model.name} cannot take adapters as it is loaded now. Load it with the transformers loader.")
            if name in model.adapters:
                model.unload_adapter(name)
            model.load_adapter(name, str(self.app.loras.find(name).path))
        return name

    def _adapter(self, id_: str, checkpoint: str | None) -> str:
        """The name of the run's adapter in the adapters folder, where that of a checkpoint is copied to."""
        runs, job = self.app.training, self.run(id_)
        if job.config.method == "full":
            raise UserError(f"This run made a whole model: load {job.name} on the Models tab.")
        checkpoint = checkpoint or job.adapter
        if checkpoint is None:
            raise Conflict(f"{job.name} is {job.state} and has no adapter yet. Choose one of its checkpoints.")
        runs.let_go(id_)
        if not checkpoint:
            return job.name
        return runs.use_checkpoint(id_, checkpoint, lambda old: self.app.trash.undoable(self.owner, "adapter", old.name, [old]))

    def ask(self, question: str, adapter: str | None) -> EventStream:
        """The reply of the loaded model to one question, with or without an adapter, without chance. Raises UserError."""
        if not question.strip():
            raise UserError("Write a question first.")
        sampling = SamplingParams(max_tokens=COMPARED_TOKENS, temperature=0.0)
        with self.app.manager.lease(wait=True) as model:
            return model.stream(GenerationRequest((Message("user", question),), sampling, adapter=adapter))

    # --- the form of a new run

    def choices(self) -> FormChoices:
        """What is there to choose from now."""
        places = self.app.training.places
        models = tuple(spec.name for spec in self.app.models.all() if spec.format == "folder" and not spec.problem)
        adapters = (lora.name for lora in self.app.loras.all() if lora.format == "peft" and not lora.problem)
        datasets = tuple(list_datasets(places.datasets))
        loaded = self.app.manager.loaded
        return FormChoices(
            settings={
                "model": models,
                "dataset": datasets,
                "eval_dataset": ("", *datasets),
                "format": ("auto", *list_formats(places.formats)),
                "template": ("auto", "model", "format", *self.app.templates.names()),
                "continue_from": ("", *adapters),
            },
            recipes=tuple(list_recipes(self.app.training.recipes)),
            model=loaded.name if loaded is not None and loaded.name in models else next(iter(models), ""),
        )

    def recipe(self, name: str) -> Recipe:
        """One recipe. Raises NotFound, UserError."""
        return read_recipe(self.app.training.recipes, name)

    def copy(self, id_: str) -> TrainingConfig:
        """The settings of a run, for a new one of another name. Raises NotFound."""
        return self.app.training.copy(id_)


def curves_of(told: Sequence[events.TrainingEvent]) -> dict[str, list[tuple[int, float]]]:
    """Name → (step, value): the losses, and what else a step measures."""
    steps = [event for event in told if isinstance(event, events.Stepped)]
    smooth = events.smoothed(event.loss for event in steps)
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
    return {name: thinned(points) for name, points in curves.items()}


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
