"""Data sets: files and folders of them, and those of the Hugging Face Hub, row by row; what cannot be read is told, with its number."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.errors import NotFound, Unavailable, UserError
from modules.library.entries import named, why_not_read
from modules.library.hub import RepositoryName, gated, hub_address, sentences
from modules.training.encodings import NotUtf8, likely_if_foreign, open_text
from modules.training.json_rows import SeveralLists, json_rows
from modules.training.row import Broken, Note, Row, cleaned, whole
from modules.training.table_rows import csv_rows, parquet_rows

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
HUB = "hub:"
_TEXT = ("text", "content")


@dataclass(frozen=True)
class Problem:
    """A row with something wrong. kind: broken, empty, no answer, too long (cut), too long (left out), too short.

    row: its number in the data set, counted from 1.
    """

    kind: str
    row: int
    reason: str


@dataclass(frozen=True)
class Rows:
    """rows: (number from 1, row); problems: what could not be read; text: each row is a document of plain text.

    notes: what is told about the files; complete: whether there are no more rows.
    """

    rows: tuple[tuple[int, Row], ...]
    problems: tuple[Problem, ...] = ()
    text: bool = False
    notes: tuple[str, ...] = ()
    complete: bool = True

    @property
    def columns(self) -> list[str]:
        """Every column that some row has, in the order they are met."""
        return list(dict.fromkeys(key for _, row in self.rows for key in row))


def list_datasets(folder: Path) -> list[str]:
    """Files and folders of `folder` that hold rows or text, by name."""
    return [path.name for path in named(folder) if path.suffix.lower() in SUFFIXES or _holds_rows(path)]


def _holds_rows(path: Path) -> bool:
    """Whether it is a folder with rows in it, or one that says why it cannot be read when it is."""
    return os.path.isdir(path) and (why_not_read(path) is not None or any(_files(path)))


def find_dataset(folder: Path, name: str) -> Path:
    """The file or folder called `name` (its suffix may be left out). Raises NotFound."""
    name = name.strip()
    if not name:
        raise UserError("Choose a data set.", param="dataset")
    inside, root = Path(os.path.abspath(folder / name)), Path(os.path.abspath(folder))
    if inside.is_relative_to(root) and inside != root:  # a link in it may lead elsewhere
        for path in (inside, *(inside.with_name(inside.name + suffix) for suffix in SUFFIXES)):
            if os.path.lexists(path):
                return path
    known = ", ".join(list_datasets(folder)) or "none yet"
    raise NotFound(f"There is no data set called {name} in training/datasets. There are: {known}.", param="dataset")


def find_file(folder: Path, name: str) -> tuple[Path, str]:
    """(file or folder, the list in it): NAME, or NAME:LIST for one list of a file that holds several. Raises NotFound."""
    file, colon, wanted = name.strip().rpartition(":")
    if colon and file.strip():
        try:
            return find_dataset(folder, name), ""
        except NotFound:
            return find_dataset(folder, file), wanted.strip()
    return find_dataset(folder, name), ""


def read_rows(folder: Path, name: str, limit: int | None = None, letters: int | None = None) -> Rows:
    """All rows of a data set: a name in `folder`, or hub:ORGANISATION/NAME. Raises UserError.

    limit: the most rows. letters: no more rows are read behind so many characters.
    """
    if name.strip().startswith(HUB):
        return _from_hub(name.strip().removeprefix(HUB), limit)
    path, wanted = find_file(folder, name)
    if reason := why_not_read(path):
        raise UserError(reason, param="dataset")
    files = list(_files(path)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"The folder {name} holds no file that can be read: {', '.join(SUFFIXES)}.", param="dataset")
    text = {file.suffix.lower() == ".txt" for file in files}
    if len(text) == 2:
        raise UserError(f"{name} mixes text files with files of rows: put them into two data sets.", param="dataset")
    items = _read(files[0], wanted) if len(files) == 1 else _read_all(files)
    rows = _collected(items, limit, letters, text=text == {True})
    if not rows.rows:
        for file in files:
            if rows.problems and (likely := likely_if_foreign(file)):
                raise NotUtf8(file, likely)
    return rows


def to_convert(folder: Path, name: str) -> str:
    """The file of a data set that is in another encoding for the most part, below `folder`; empty where there is none."""
    if name.strip().startswith(HUB):
        return ""
    path, _ = find_file(folder, name)
    files = _files(path) if path.is_dir() else [path]
    return next((name_below(folder, file) for file in files if likely_if_foreign(file)), "")


def name_below(folder: Path, file: Path) -> str:
    """The name by which `find_dataset` finds a file of a data set."""
    return str(file.relative_to(os.path.abspath(folder)))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and not os.path.isdir(path))


def _collected(
    items: Iterable[Row | Broken | Note], limit: int | None, letters: int | None = None, *, text: bool = False
) -> Rows:
    rows: list[tuple[int, Row]] = []
    problems: list[Problem] = []
    notes: list[str] = []
    number = taken = 0
    complete = True
    for item in items:
        if isinstance(item, Note):
            notes.append(item.text)
            continue
        if (limit is not None and number >= limit) or (letters is not None and taken > letters):
            complete = False
            break
        number += 1
        if isinstance(item, Broken):
            problems.append(Problem("broken", number, item.reason))
            continue
        rows.append((number, item))
        if letters is not None:
            taken += letters_in(item)
    return Rows(tuple(rows), tuple(problems), text, tuple(notes), complete)


def letters_in(value: Any) -> int:
    """How many characters a value has in it, numbers left aside."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict | list):
        return sum(map(letters_in, value.values() if isinstance(value, dict) else value))
    return 0


def _read_all(files: list[Path]) -> Iterator[Row | Broken | Note]:
    """Rows of several files, one after another: one that cannot be read at all counts as a broken row."""
    for file in files:
        try:
            for item in _read(file):
                match item:
                    case Broken(reason):
                        yield Broken(f"{file.name}: {reason}")
                    case Note(text):
                        yield Note(f"{file.name}: {text}")
                    case row:
                        yield row
        except (NotUtf8, SeveralLists):
            raise  # a click mends it
        except UserError as error:
            yield Broken(error.message)


def _read(path: Path, wanted: str = "") -> Iterator[Row | Broken | Note]:
    """Rows of one file; wanted: the list in it."""
    if reason := why_not_read(path):
        raise UserError(reason, param="dataset")
    suffix = path.suffix.lower()
    if wanted and suffix not in (".json", ".jsonl"):
        raise NotFound(f"{path.name} holds no lists of which {wanted} could be one.", param="dataset")
    try:
        match suffix:
            case ".json" | ".jsonl":
                yield from json_rows(path, wanted)
            case ".csv":
                yield from csv_rows(path)
            case ".parquet":
                yield from parquet_rows(path)
            case ".txt":
                yield from _document(path)
            case _:
                raise UserError(f"{path.name} is none of the files that can be read: {', '.join(SUFFIXES)}.", param="dataset")
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror or error}.", param="dataset") from None


def _document(path: Path) -> Iterator[Row | Broken]:
    with open_text(path) as file:
        text = file.read()
    try:
        yield {"text": whole(text)}
    except ValueError as error:
        yield Broken(str(error))


def _from_hub(name: str, limit: int | None) -> Rows:
    """ORGANISATION/NAME, then optionally /SPLIT and :CONFIGURATION. Raises UserError."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi

    name, _, configuration = name.strip().partition(":")
    parts = [part for part in name.split("/") if part]
    if len(parts) not in (2, 3):
        raise UserError(f"{HUB}{name} is not the name of a data set: write {HUB}ORGANISATION/NAME.", param="dataset")
    split = parts[2] if len(parts) > 2 else "train"
    repository = RepositoryName("/".join(parts[:2]))
    out_of_reach: Unavailable | None = None
    try:
        with sentences(repository, "data set"):
            HfApi(endpoint=hub_address()).dataset_info(repository.repository, timeout=30)
    except Unavailable as error:  # it may have been fetched before
        if not _was_fetched(repository.repository):
            raise  # load_dataset would try again for half a minute
        out_of_reach = error
    try:
        table: Any = load_dataset(repository.repository, configuration or None, split=split)
    except DatasetNotFoundError:
        if out_of_reach is not None:
            raise out_of_reach from None
        raise gated(repository, "data set") from None  # it is there, and its files are refused
    except (ConnectionError, OSError, ValueError) as error:
        if out_of_reach is not None:
            raise out_of_reach from None
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{repository.repository} cannot be read from the Hugging Face Hub: {reason}", param="dataset"
        ) from None
    return _collected(_of_table(table), limit, text=list(table.column_names) in ([_TEXT[0]], [_TEXT[1]]))


def _of_table(table: Any) -> Iterator[Row | Broken]:
    for row in table:
        try:
            yield cleaned(dict(row))
        except ValueError as error:
            yield Broken(f"it cannot be read: {error}")


def _was_fetched(repository: str) -> bool:
    from datasets.load import CachedDatasetModuleFactory

    try:
        CachedDatasetModuleFactory(repository).get_module()
    except FileNotFoundError:
        return False
    return True
