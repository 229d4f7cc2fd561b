"""What a run tells while it goes on: one line of JSON for each event, appended to events.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Started:
    """The model is loaded and the data ready. step: how many were done before (0, or where it is resumed)."""

    step: int
    total_steps: int
    processes: int
    device: str
    dtype: str
    trainable: int
    parameters: int
    data: str = ""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Stepped:
    """One step is done. tokens: real ones of it; seconds: how long it took; memory: highest so far, in bytes.

    preferred: for dpo, the share of its pairs whose chosen answer has gained more than the rejected one.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    memory: int
    preferred: float | None = None


@dataclass(frozen=True)
class Evaluated:
    """Loss on the held-out rows; best: the lowest so far; preferred: as in `Stepped`."""

    step: int
    loss: float
    best: bool
    preferred: float | None = None


@dataclass(frozen=True)
class Sampled:
    """A reply to one of the prompts, beside the base model's."""

    step: int
    prompt: str
    reply: str
    base: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint is complete; name: its folder."""

    step: int
    name: str


@dataclass(frozen=True)
class Noted:
    """Something worth knowing that changes nothing."""

    text: str


@dataclass(frozen=True)
class Stopped:
    """Somebody stopped the run; it can be resumed from this step."""

    step: int


@dataclass(frozen=True)
class Done:
    """The run is complete. output: where its adapter or model lies; reason: why it ended here."""

    step: int
    output: str
    reason: str


@dataclass(frozen=True)
class Failed:
    """The run ended by an error. reason: a sentence for people."""

    reason: str


TrainingEvent = Started | Stepped | Evaluated | Sampled | Saved | Noted | Stopped | Done | Failed
_KINDS: dict[str, type[Any]] = {
    kind.__name__.lower(): kind for kind in (Started, Stepped, Evaluated, Sampled, Saved, Noted, Stopped, Done, Failed)
}


def append_event(path: Path, event: TrainingEvent) -> None:
    """Add one line. A line that a crash cut short is ended first."""
    line = json.dumps({"event": type(event).__name__.lower(), **asdict(event)}, ensure_ascii=False)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")


def read_events(path: Path) -> list[TrainingEvent]:
    """All events that are still true: those of steps that a resumed run did anew are left out."""
    events: list[TrainingEvent] = []
    for event in _lines(path):
        if isinstance(event, Started):
            events = [before for before in events if not _is_undone(before, event.step)]
        events.append(event)
    return events


def _is_undone(event: TrainingEvent, step: int) -> bool:
    return isinstance(event, Stopped | Failed | Done) or getattr(event, "step", -1) > step


def _lines(path: Path) -> Iterable[TrainingEvent]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            yield _KINDS[values.pop("event")](**values)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def smoothed(losses: Iterable[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average without the pull of its first value (bias-corrected, as Adam does)."""
    result = []
    average = 0.0
    for count, loss in enumerate(losses, 1):
        average = weight * average + (1 - weight) * loss
        result.append(average / (1 - weight**count))
    return result
