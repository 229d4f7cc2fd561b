"""What a data set looks like: its first rows at once, and all of them counted by a process of its own, as that work grows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from modules.errors import UserError
from modules.training import launch, process
from modules.training.config import TrainingConfig
from modules.training.dataset import Places, Prepared, prepare, prepare_rows
from modules.training.row import Row
from modules.training.rows import Problem, Rows, letters_in, read_rows
from modules.training.samples import load_tokenizer

FIRST_ROWS = 200
_FIRST_LETTERS = 400_000
_LETTERS_OF_A_TOKEN = 16
"""More than a token has, but for rows of spaces: so much of a row reaches beyond the cutoff."""
TOLD = 200
"""The most problems that are told one by one."""
_SECONDS = 600


@dataclass(frozen=True)
class FirstRows:
    """prepared: the first rows, None where nothing of them can be learnt; complete: whether there are no others, and these are whole.

    shortened: numbers of the rows of which only the beginning is there. reason: why nothing can be learnt.
    """

    prepared: Prepared | None
    tokenizer: Any
    complete: bool
    shortened: frozenset[int] = frozenset()
    reason: str = ""


@dataclass(frozen=True)
class Figures:
    """A whole data set in numbers. sentence: all of it for people; lengths: how many rows have how many tokens; told: the first problems."""

    rows: int
    good: int
    tokens: int
    format: str
    template: str
    sentence: str
    lengths: Mapping[int, int]
    counts: Mapping[str, int] = field(default_factory=dict)
    told: tuple[Problem, ...] = ()


def figures(prepared: Prepared) -> Figures:
    return Figures(
        rows=prepared.rows,
        good=prepared.good,
        tokens=sum(len(sample.tokens) for sample in prepared.samples),
        format=prepared.format,
        template=prepared.template,
        sentence=prepared.sentence,
        lengths=dict(Counter(len(sample.tokens) + sample.cut for sample in prepared.samples)),
        counts=prepared.counts,
        told=prepared.problems[:TOLD],
    )


def first_rows(config: TrainingConfig, places: Places, tokenizer: Any, model_name: str) -> FirstRows:
    """The first rows, made ready; the time does not grow with the data set or a row. Raises UserError where it cannot be used at all."""
    rows = read_rows(places.datasets, config.dataset, FIRST_ROWS, _FIRST_LETTERS)
    most = min(config.cutoff * _LETTERS_OF_A_TOKEN + 10_000, _FIRST_LETTERS)
    long = frozenset(number for number, row in rows.rows if letters_in(row) > most)
    complete = rows.complete and not long
    short = tuple((number, _shortened(row, most) if number in long else row) for number, row in rows.rows)
    first = Rows(short, rows.problems, rows.text, rows.notes, rows.complete)
    try:
        return FirstRows(prepare_rows(config, places, tokenizer, model_name, first), tokenizer, complete, long)
    except UserError as error:
        if complete:
            raise
        return FirstRows(None, tokenizer, complete, long, error.message)


def _shortened(row: Row, most: int) -> Row:
    """The row with the beginnings of its texts alone: about `most` characters of all together, in their order."""
    left = most

    def shortened(value: Any) -> Any:
        nonlocal left
        match value:
            case str():
                kept = value[: max(left, 1)]
                left -= len(kept)
                return kept
            case dict():
                return {key: shortened(item) for key, item in value.items()}
            case list():
                return [shortened(item) for item in value]
        return value

    return shortened(row)


@dataclass(frozen=True)
class Counting:
    """A process that makes a whole data set ready, and the file that it writes the figures to."""

    process: subprocess.Popen[bytes]
    answer: IO[bytes]

    def wait(self, seconds: float) -> Figures | None:
        """The figures; None while it still counts. Raises UserError, where nothing can be learnt too."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self.answer.seek(0)
        try:
            answer = json.loads(self.answer.read())
        except ValueError:
            raise UserError(
                "Not all rows could be counted: the process that counts them was ended, or took too long."
            ) from None
        if "problem" in answer:
            raise UserError(answer["problem"], param="dataset")
        told = tuple(Problem(**one) for one in answer.pop("told"))
        lengths = {int(length): count for length, count in answer.pop("lengths").items()}
        return Figures(**answer, told=told, lengths=lengths)


@contextmanager
def count_all(config: TrainingConfig, places: Places, model: Path, model_name: str) -> Iterator[Counting]:
    """Counts as long as the block lasts."""
    asked = {
        "config": config.model_dump(mode="json"),
        "places": {name: str(path.resolve()) for name, path in asdict(places).items()},
        "model": str(model.resolve()),
        "name": model_name,
        "server": os.getpid(),
    }
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as request:
        request.write(json.dumps(asked).encode())
        request.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "modules.training.preview"],
            cwd=launch.CODE,
            stdin=request,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **process.python_environment()},
            start_new_session=True,
        )
        try:
            yield Counting(child, answer)
        finally:
            child.kill()
            child.wait()


def main() -> None:
    """The process: what is asked comes in as JSON, the figures go out."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)  # libraries print what they like
        signal.alarm(_SECONDS)
        os.nice(5)
        asked = json.load(sys.stdin)
        threading.Thread(target=end_with, args=[asked["server"]], daemon=True).start()
        config = TrainingConfig.read(asked["config"])
        places = Places(**{name: Path(path) for name, path in asked["places"].items()})
        try:
            found = asdict(figures(prepare(config, places, load_tokenizer(asked["model"]), asked["name"])))
        except UserError as error:
            found = {"problem": error.message}
        json.dump(found, answer)


def end_with(server: int) -> None:
    """Nobody waits for the figures any more once the server is gone, however it ended. server: its process."""
    while os.getppid() == server:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
