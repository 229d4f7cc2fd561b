"""Training data: data sets looked at before a run, converted to UTF-8, and added. What writes files is for administrators."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from modules.errors import Conflict, UserError
from modules.library.paths import path_inside, write_text
from modules.services.base import Service
from modules.training.config import TrainingConfig
from modules.training.dataset import choose_format
from modules.training.encodings import NotUtf8
from modules.training.encodings import convert as convert_to_utf8
from modules.training.json_rows import SeveralLists
from modules.training.preview import FIRST_ROWS, Counting, Figures, FirstRows, figures
from modules.training.rows import SUFFIXES, find_dataset, name_below, read_rows, to_convert
from modules.training.samples import readable

SHOWN_ROWS = 8
"""How many of the first rows are shown with their learnt tokens marked."""


@dataclass(frozen=True)
class DatasetView:
    """What is known of a data set at once. first: its first rows, None where none can be shown, with the reason in `problem`.

    figures: of the whole data set, where it is small. foreign: its file in another encoding that can be converted, "" for none.
    lists: of a file with several lists, what to choose from: (label, name of the data set).
    """

    first: FirstRows | None = None
    figures: Figures | None = None
    problem: str = ""
    foreign: str = ""
    lists: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ShownRow:
    """One of the first rows: runs of (text, learnt). whole: all its tokens are there; rejected: to become less likely."""

    number: int
    tokens: int
    cut: int
    whole: bool
    rejected: bool
    runs: tuple[tuple[str, bool], ...] = field(repr=False)


class Datasets(Service):
    """Data sets of the server. Everyone may look."""

    def look(self, config: TrainingConfig) -> DatasetView:
        """What the data set of `config` looks like. Raises UserError where nothing at all can be said."""
        folder = self.app.training.places.datasets
        try:
            first = self.app.training.first_rows(config)
        except NotUtf8 as error:
            return DatasetView(problem=error.message, foreign=name_below(folder, error.file) if error.likely else "")
        except SeveralLists as error:
            found = tuple((f"{name} ({count})", f"{error.file}:{name}") for name, count in error.lists.items())
            return DatasetView(problem=error.message, lists=found)
        known = figures(first.prepared) if first.prepared and first.complete else None
        foreign = to_convert(folder, config.dataset) if not known or known.counts.get("broken") else ""
        return DatasetView(first, known, foreign=foreign)

    def counting(self, config: TrainingConfig) -> AbstractContextManager[Counting]:
        """Counts the whole data set in a process of its own, as long as the block lasts. Raises Unavailable, UserError."""
        return self.app.training.counting(config)

    def summary(self, config: TrainingConfig) -> tuple[str, int | None]:
        """(Format, number of rows where it is known at once), without a model. Raises UserError."""
        places = self.app.training.places
        rows = read_rows(places.datasets, config.dataset, FIRST_ROWS)
        name, _ = choose_format(config, places, rows)
        return name, len(rows.rows) + len(rows.problems) if rows.complete else None

    def convert(self, name: str) -> None:
        """Write a file that is not UTF-8 anew as UTF-8; what it was stays beside it. Raises NotFound, UserError, Forbidden."""
        self.require_admin()
        convert_to_utf8(find_dataset(self.app.training.places.datasets, name))

    def add_file(self, path: Path) -> str:
        """Keep a copy of an uploaded file; returns the name of the data set. Raises UserError, Conflict, Forbidden."""
        self.require_admin()
        target = self._new(path.name)
        shutil.copy(path, target)
        return target.name

    def add_text(self, name: str, text: str) -> str:
        """Keep pasted rows under `name`; the suffix may be left out. Returns the name. Raises UserError, Conflict, Forbidden."""
        self.require_admin()
        if not text.strip():
            raise UserError("Paste the rows first.")
        has_suffix = Path(name).suffix.lower() in SUFFIXES
        target = self._new(name if has_suffix else f"{name.strip() or 'pasted'}{_suffix_of(text)}")
        write_text(target, text)
        return target.name

    def _new(self, name: str) -> Path:
        """Where a new data set goes. Raises Conflict where there is one of that name."""
        path = path_inside(self.app.training.places.datasets, name, what="data set's name")
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{name} is none of the files that can be read: {', '.join(SUFFIXES)}.")
        if path.exists():
            raise Conflict(f"There is already a data set called {name}: choose another name.")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _suffix_of(text: str) -> str:
    """The suffix that pasted text asks for."""
    first = text.lstrip()[:1]
    return ".json" if first == "[" else ".jsonl" if first == "{" else ".txt"


def figures_of(first: FirstRows) -> Figures | None:
    """The first rows in numbers; None where nothing of them can be learnt."""
    return figures(first.prepared) if first.prepared is not None else None


def shown_rows(first: FirstRows) -> Iterator[ShownRow]:
    """The first SHOWN_ROWS rows. Of preference data every second one is the answer that is to become less likely."""
    if first.prepared is None:
        return
    for at, sample in enumerate(first.prepared.samples[:SHOWN_ROWS]):
        yield ShownRow(
            number=sample.row,
            tokens=len(sample.tokens),
            cut=sample.cut,
            whole=sample.row not in first.shortened,
            rejected=first.prepared.pairs and at % 2 == 1,
            runs=tuple(readable(first.tokenizer, sample)),
        )
