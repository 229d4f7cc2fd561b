"""Training jobs: start, watch, stop, resume, copy, delete, queue. All of it is read from files and from the process table."""

from __future__ import annotations

import filecmp
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from modules.errors import Conflict, NotFound, Unavailable, UserError
from modules.library.entries import entries_of
from modules.library.loras import LoraLibrary
from modules.library.model_spec import ModelSpec
from modules.library.models import ModelLibrary
from modules.library.paths import safe_name, write_text
from modules.training import checkpoints, events, launch, process
from modules.training.checks import check_model, check_output, check_settings
from modules.training.config import CHANGE_THE_BASE, TrainingConfig
from modules.training.dataset import Places, Prepared, prepare, split
from modules.training.folder import Plan, RunFolder
from modules.training.merging import Merge, read_merge, start_merge
from modules.training.preview import Counting, FirstRows, count_all, first_rows
from modules.training.samples import load_tokenizer

log = logging.getLogger(__name__)
State = Literal["queued", "starting", "running", "stopping", "done", "stopped", "failed", "interrupted", "new"]
ACTIVE: tuple[State, ...] = ("starting", "running", "stopping")
_CHECKED_ROWS = 2000
_COUNTED_AT_ONCE = 2


@dataclass(frozen=True)
class TrainingJob:
    """A run as people see it. reason: why it ended, or what went wrong; remaining: seconds; loss: smoothed; output: its result."""

    id: str
    name: str
    state: State
    config: TrainingConfig
    reason: str = ""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    remaining: float | None = None
    checkpoints: tuple[str, ...] = ()
    output: str = ""

    @property
    def can_resume(self) -> bool:
        return self.state in ("stopped", "failed", "interrupted", "new")

    @property
    def adapter(self) -> str | None:
        """Which adapter can be used: "" for the finished one, the newest checkpoint of a run that ended early, None for none."""
        if self.config.method == "full" or self.state in ACTIVE:
            return None
        if self.state == "done":
            return ""
        return self.checkpoints[-1] if self.checkpoints and self.config.init not in CHANGE_THE_BASE else None


class TrainingJobs:
    """All jobs of one root folder. Safe to call from any thread, and from a server that was started anew."""

    def __init__(self, root: Path, models: ModelLibrary | None = None, loras: LoraLibrary | None = None) -> None:
        self.root = root
        self.runs = root / "training" / "runs"
        self.recipes = root / "training" / "recipes"
        self.places = Places(root / "training" / "datasets", root / "training" / "formats", root / "prompts" / "templates")
        self.models = models or ModelLibrary(root / "models")
        self.loras = loras or LoraLibrary(root / "loras")
        self._lock = threading.RLock()
        self._counts = threading.BoundedSemaphore(_COUNTED_AT_ONCE)
        self._closing = threading.Event()
        self._queue_thread: threading.Thread | None = None
        self._read: dict[Path, tuple[int, int, list[events.TrainingEvent]]] = {}
        if self._queued():
            self.watch_queue()

    # --- before a run

    def preview(self, config: TrainingConfig, rows: int = 200) -> tuple[Prepared, Any]:
        """(the first rows made ready, the tokenizer they were made with). Raises UserError."""
        spec = self.models.find(config.model)
        tokenizer = load_tokenizer(spec.path)
        return prepare(config, self.places, tokenizer, spec.name, limit=rows), tokenizer

    def first_rows(self, config: TrainingConfig) -> FirstRows:
        """What the beginning of the data set looks like; it takes no longer where that is large. Raises UserError."""
        spec = self.models.find(config.model)
        return first_rows(config, self.places, load_tokenizer(spec.path), spec.name)

    @contextmanager
    def counting(self, config: TrainingConfig) -> Iterator[Counting]:
        """Counts the whole data set beside the server. Raises Unavailable where others do, too."""
        spec = self.models.find(config.model)
        if not self._counts.acquire(blocking=False):
            raise Unavailable("Not all rows are counted now: other data sets are. Show the data again in a moment.")
        try:
            with count_all(config, self.places, spec.path, spec.name) as counting:
                yield counting
        finally:
            self._counts.release()

    def check(self, config: TrainingConfig) -> TrainingConfig:
        """The config as it will run, with a name and a cutoff that the model can take. Raises UserError for all that is known to fail."""
        if not config.model:
            raise UserError("Choose a model to train.", param="model")
        config = config.changed({"name": safe_name(config.name or _name_of(config.dataset), "name")})
        check_settings(config)
        spec = self.models.find(config.model)
        check_model(config, spec)
        if config.continue_from:
            adapter = self.loras.find(config.continue_from)
            if adapter.problem or adapter.format != "peft":
                raise UserError(
                    f"{adapter.name} cannot be trained further: {adapter.problem or 'it is a GGUF file'}", param="continue_from"
                )
        if spec.context_length and config.cutoff > spec.context_length:
            config = config.changed({"cutoff": spec.context_length})
        check_output(config, self._output(config), self.runs, spec)
        self._check_data(config)
        return config

    def _check_data(self, config: TrainingConfig) -> None:
        """On the first rows; on all, where those tell of a mistake."""
        try:
            prepared, _ = self.preview(config, _CHECKED_ROWS)
        except UserError:
            prepared, _ = self.preview(config, 10**9)
        if config.eval_dataset:
            self.preview(config.changed({"dataset": config.eval_dataset}), _CHECKED_ROWS)
        elif config.eval_share:
            split(prepared.samples, config)

    # --- runs

    def start(self, config: TrainingConfig, *, queue: bool = False) -> TrainingJob:
        """Check, write the folder and start the process; or put it into the queue where another one runs. Raises UserError."""
        config = self.check(config)
        with self._lock:
            running = [job for job in self.list() if job.state in ACTIVE or job.state == "queued"]
            if running and not queue and config.machines == 1:
                raise Conflict(f"{running[0].name} is being trained: put this one into the queue, or stop the other.")
            if twin := next(
                (job for job in self.list() if job.config == config and job.state in (*ACTIVE, "queued", "new")), None
            ):
                raise Conflict(
                    f"{twin.name} is there already with just these settings: it waits, or is being trained.", param="name"
                )
            if not config.overwrite and any(self._output(job.config) == self._output(config) for job in running):
                raise Conflict(f"A run that goes on makes {config.name}, too: choose another name.", param="name")
            folder = self._new_folder(config)
            if config.machines > 1:
                pass  # each machine's command is typed there; the job shows them
            elif running:
                folder.queued.write_text(f"{time.time():.6f}", encoding="utf-8")
                self.watch_queue()
            else:
                self._launch(folder, config)
        return self.get(folder.path.name)

    def resume(self, id: str, *, queue: bool = False) -> TrainingJob:
        """Go on from the newest complete checkpoint (from the start where there is none). Raises Conflict."""
        with self._lock:
            job = self.get(id)
            if not job.can_resume:
                raise Conflict(f"{job.name} is {job.state}: it cannot be resumed.")
            folder = self._folder(id)
            busy = [other for other in self.list() if other.state in ACTIVE and other.id != id]
            if busy and not queue:
                raise Conflict(f"{busy[0].name} is being trained: put this one into the queue, or stop the other.")
            if busy:
                folder.queued.write_text(f"{time.time():.6f}", encoding="utf-8")
                self.watch_queue()
            else:
                self._launch(folder, job.config)
        return self.get(id)

    def stop(self, id: str) -> None:
        """Ask the run to save and end after its step; takes a waiting one out of the queue."""
        folder = self._folder(id)
        if folder.queued.exists():
            folder.queued.unlink(missing_ok=True)
        elif process.alive(folder.process):
            folder.stop_mark.touch()

    def stop_now(self, id: str) -> None:
        """End the run's processes at once; what was done since the last checkpoint is lost."""
        folder = self._folder(id)
        folder.queued.unlink(missing_ok=True)
        if pid := process.alive(folder.process):
            process.kill_group(pid)

    def let_go(self, id: str) -> None:
        """Where a run has ended, wait until its process is gone, with the memory that it held."""
        if self.get(id).state not in ACTIVE:
            process.wait_for_end(self._folder(id).process)

    def delete(self, id: str) -> None:
        """Delete the folder of a run that is not active; its adapter stays. Raises Conflict."""
        shutil.rmtree(self.deletable(id).path)

    def deletable(self, id: str) -> RunFolder:
        """The folder of a run that may be deleted. Raises Conflict for one that is active."""
        job = self.get(id)
        if job.state in ACTIVE:
            raise Conflict(f"{job.name} is {job.state}: stop it first.")
        self.let_go(id)
        return self._folder(id)

    def copy(self, id: str) -> TrainingConfig:
        """The config of a run, for a new one of another name."""
        config = self.get(id).config
        base = re.sub(r"-\d+$", "", config.name)
        taken = {job.name for job in self.list()} | {lora.name for lora in self.loras.all()}
        number = next(count for count in range(2, 10**6) if f"{base}-{count}" not in taken)
        return config.changed({"name": f"{base}-{number}"})

    def list(self) -> list[TrainingJob]:
        """All runs, the newest first."""
        jobs = []
        for path in reversed(entries_of(self.runs)):
            # A folder that is deleted meanwhile, or damaged, must not hide the others.
            try:
                if (path / "plan.json").exists():
                    jobs.append(self.get(path.name))
            except (UserError, OSError) as error:
                log.warning("the run %s cannot be listed: %s", path.name, error)
        return jobs

    def get(self, id: str) -> TrainingJob:
        """One run. Raises NotFound."""
        folder = self._folder(id)
        config = folder.read_config()
        told, (state, reason) = self._look(folder)
        steps = [event for event in told if isinstance(event, events.Stepped)]
        started = next((event for event in reversed(told) if isinstance(event, events.Started)), None)
        recent = steps[-20:]
        seconds = sum(event.seconds for event in recent)
        total = started.total_steps if started else 0
        left = total - steps[-1].step if steps else 0
        return TrainingJob(
            id=id,
            name=config.name,
            state=state,
            config=config,
            reason=reason,
            step=steps[-1].step if steps else 0,
            total_steps=total,
            loss=events.smoothed(event.loss for event in steps)[-1] if steps else None,
            tokens_per_second=sum(event.tokens for event in recent) / seconds if seconds else None,
            remaining=left * seconds / len(recent) if recent and state in ACTIVE else None,
            checkpoints=tuple(one.name for one in checkpoints.list_checkpoints(folder.checkpoints)),
            output=next((event.output for event in reversed(told) if isinstance(event, events.Done)), ""),
        )

    def events(self, id: str) -> list[events.TrainingEvent]:
        """Everything that a run has told; the file is read again only when it has changed."""
        path = self._folder(id).events
        try:
            stat = path.stat()
        except OSError:
            return []
        size, changed, told = self._read.get(path, (-1, -1, []))
        if (size, changed) != (stat.st_size, stat.st_mtime_ns):
            told = events.read_events(path)
            self._read[path] = (stat.st_size, stat.st_mtime_ns, told)
        return told

    def log_tail(self, id: str, lines: int = 20) -> str:
        """The last lines of what the process wrote."""
        return _tail(self._folder(id).log, lines)

    def commands(self, id: str) -> str:
        """What to type to repeat the run by hand, for each machine."""
        folder = self._folder(id)
        return launch.shown_commands(
            folder.read_config(), _relative(folder.path), _relative(folder.accelerate), self.copy(id).name
        )

    def accelerate_file(self, id: str) -> str:
        """The configuration for `accelerate launch`, empty where none is used."""
        config = self._folder(id).read_config()
        return launch.accelerate_config(config) if config.sharding != "none" else ""

    def merge(self, id: str, name: str, checkpoint: str = "") -> Merge:
        """Begin to write the run's adapter (or that of a checkpoint) into a copy of its model, models/`name`. Raises UserError."""
        folder, job = self._folder(id), self.get(id)
        if job.config.method == "full":
            raise UserError(f"This run made a whole model: {job.name} is one already.")
        if not checkpoint and not (job.state == "done" and Path(job.output).is_dir()):
            raise Conflict(f"{job.name} has no finished adapter. Choose one of its checkpoints.")
        adapter = self._adapter_of(folder, job.config, checkpoint) if checkpoint else Path(job.output)
        with self._lock:
            return start_merge(folder, self.models.find(job.config.model), adapter, self.models.folder, name)

    def merging(self, id: str) -> Merge | None:
        """How the last merge of the run stands."""
        return read_merge(self._folder(id))

    def use_checkpoint(
        self, id: str, checkpoint: str, replacing: Callable[[Path], AbstractContextManager[object]] = nullcontext
    ) -> str:
        """Copy the adapter of a checkpoint to the adapters folder, and return its name there. Raises UserError.

        replacing: around the replacement of another adapter that has its name.
        """
        folder = self._folder(id)
        config = folder.read_config()
        source = self._adapter_of(folder, config, checkpoint)
        target = self.loras.folder / f"{config.name}-{source.name}"
        files = [file.name for file in source.glob("adapter_*")]
        if len(filecmp.cmpfiles(source, target, files, shallow=False)[0]) == len(files):
            return target.name
        draft = target.with_name(f".{target.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for file in files:
            shutil.copy(source / file, draft)
        with replacing(target):
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
        return target.name

    def close(self) -> None:
        """Let go of the queue. Runs go on."""
        self._closing.set()

    # --- inside

    def _adapter_of(self, folder: RunFolder, config: TrainingConfig, checkpoint: str) -> Path:
        """The folder of a checkpoint, where it is an adapter for the plain base. Raises UserError."""
        if config.method == "full":
            raise UserError("This run trains a whole model: its checkpoints are no adapters.", param="checkpoint")
        source = folder.checkpoints / safe_name(checkpoint, "checkpoint")
        if not checkpoints.is_complete(source):
            raise NotFound(f"There is no complete checkpoint {checkpoint} in this run.", param="checkpoint")
        if config.init in CHANGE_THE_BASE:
            raise UserError(f"Adapters begun with {config.init} can be used when the run is done.", param="checkpoint")
        return source

    def _folder(self, id: str) -> RunFolder:
        folder = RunFolder(self.runs / safe_name(id, "run"))
        if not folder.plan_file.exists():
            raise NotFound(f"There is no training run called {id}.")
        return folder

    def _look(self, folder: RunFolder) -> tuple[Sequence[events.TrainingEvent], tuple[State, str]]:
        """(What a run has told, how it stands). Each is read before what replaces it: the queue's mark, the process, its last words."""
        queued = folder.queued.exists()
        alive = process.alive(folder.process) is not None
        told = self.events(folder.path.name)
        ended = ("queued", "") if queued else self._ended(folder, told)
        if not alive:
            return told, ended
        launched = json.loads(folder.process.read_text(encoding="utf-8")).get("started") or 0
        fresh = any(isinstance(event, events.Started) and event.at >= launched for event in told)
        if fresh and isinstance(told[-1], events.Done | events.Stopped | events.Failed):
            return told, ended  # all is written: the process only gives its memory back
        if folder.stop_mark.exists():
            return told, ("stopping", "")
        return told, ("running" if fresh else "starting", "")

    def _ended(self, folder: RunFolder, told: Sequence[events.TrainingEvent]) -> tuple[State, str]:
        match told[-1] if told else None:
            case events.Done(reason=reason):
                return "done", reason
            case events.Stopped(step=step):
                return "stopped", f"stopped after step {step}"
            case events.Failed(reason=reason):
                return "failed", reason
        if not folder.process.exists():
            return "new", "It waits for the commands below, one on each machine." if folder.read_config().machines > 1 else ""
        if not told:
            return "failed", f"The process ended before it could begin. Its last lines:\n{_tail(folder.log, 5)}"
        return "interrupted", "The process was ended from outside (by somebody, or by the system where memory ran out)."

    def _output(self, config: TrainingConfig) -> Path:
        return (self.models.folder if config.method == "full" else self.loras.folder) / config.name

    def _new_folder(self, config: TrainingConfig) -> RunFolder:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        names = (f"{stamp}-{config.name}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        path = next(path for name in names if not (path := self.runs / name).exists())
        spec = self.models.find(config.model)
        folder = RunFolder(path)
        folder.create(config, self._plan(config, spec))
        if config.sharding != "none":
            write_text(folder.accelerate, launch.accelerate_config(config))
        return folder

    def _plan(self, config: TrainingConfig, spec: ModelSpec) -> Plan:
        adapter = self.loras.find(config.continue_from).path.resolve() if config.continue_from else ""
        places = self.places
        return Plan(
            model=str(spec.path.resolve()),
            output=str(self._output(config).resolve()),
            datasets=str(places.datasets.resolve()),
            formats=str(places.formats.resolve()),
            templates=str(places.templates.resolve()),
            adapter=str(adapter),
        )

    def _launch(self, folder: RunFolder, config: TrainingConfig) -> None:
        """Start the process, and only then take the run out of the queue: it is one or the other at any moment."""
        folder.stop_mark.unlink(missing_ok=True)
        for run in self.runs.iterdir():
            process.wait_for_end(RunFolder(run).process)
        words = launch.command(config, folder.path.resolve())
        try:
            process.start(words, cwd=launch.CODE, log=folder.log, mark=folder.process, environment=process.python_environment())
        finally:
            folder.queued.unlink(missing_ok=True)

    # --- the queue

    def _queued(self) -> list[RunFolder]:
        """Waiting runs, the one that has waited longest first."""
        found = [RunFolder(path.parent) for path in self.runs.glob("*/queued") if not path.parent.name.startswith(".")]
        return sorted(found, key=lambda folder: (folder.queued.read_text(encoding="utf-8"), folder.path.name))

    def watch_queue(self) -> None:
        """Start the runs that wait, one after the other."""
        with self._lock:
            if self._queue_thread is None or not self._queue_thread.is_alive():
                self._queue_thread = threading.Thread(target=self._run_queue, name="training queue", daemon=True)
                self._queue_thread.start()

    def _run_queue(self) -> None:
        while not self._closing.wait(0.5):
            with self._lock:
                waiting = self._queued()
                if not waiting:
                    self._queue_thread = None
                    return
                if not any(job.state in ACTIVE for job in self.list()):
                    self._launch(waiting[0], waiting[0].read_config())


def _name_of(dataset: str) -> str:
    """A name for the run of a data set."""
    stem = Path(dataset.removeprefix("hub:").replace("/", "-")).stem
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "run"


def _tail(path: Path, lines: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 20_000))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join([line.rsplit("\r", 1)[-1] for line in text.splitlines()][-lines:])


def _relative(path: Path) -> Path:
    """As seen from where commands are typed, where it lies below."""
    path = path.resolve()
    return path.relative_to(launch.CODE) if path.is_relative_to(launch.CODE) else path
