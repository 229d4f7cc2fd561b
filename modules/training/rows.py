"""Rows of a data set, from files of every usual kind; a row that cannot be read is told, with its number."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.errors import NotFound, Unavailable, UserError
from modules.library.hub import RepositoryName, gated, hub_address, sentences

Row = dict[str, Any]
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
    """rows: (number from 1, row); problems: what could not be read; text: each row is a document of plain text."""

    rows: tuple[tuple[int, Row], ...]
    problems: tuple[Problem, ...] = ()
    text: bool = False

    @property
    def columns(self) -> list[str]:
        """Every column that some row has, in the order they are met."""
        return list(dict.fromkeys(key for _, row in self.rows for key in row))


def list_datasets(folder: Path) -> list[str]:
    """Files and folders of `folder` that hold rows or text, by name."""
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if not path.name.startswith(".") and (path.suffix.lower() in SUFFIXES or (path.is_dir() and any(_files(path))))
    )


def find_dataset(folder: Path, name: str) -> Path:
    """The file or folder called `name` (its suffix may be left out). Raises NotFound."""
    name = name.strip()
    if not name:
        raise UserError("Choose a data set.", param="dataset")
    inside = (folder / name).resolve()
    if inside.is_relative_to(folder.resolve()) and inside != folder.resolve():
        for path in (inside, *(inside.with_name(inside.name + suffix) for suffix in SUFFIXES)):
            if path.exists():
                return path
    known = ", ".join(list_datasets(folder)) or "none yet"
    raise NotFound(f"There is no data set called {name} in training/datasets. There are: {known}.", param="dataset")


def read_rows(folder: Path, name: str, limit: int | None = None) -> Rows:
    """All rows (or the first `limit`) of a data set: a name in `folder`, or hub:ORGANISATION/NAME. Raises UserError."""
    if name.strip().startswith(HUB):
        return _from_hub(name.strip().removeprefix(HUB), limit)
    path = find_dataset(folder, name)
    files = list(_files(path)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"The folder {name} holds no file that can be read: {', '.join(SUFFIXES)}.", param="dataset")
    text = {file.suffix.lower() == ".txt" for file in files}
    if len(text) == 2:
        raise UserError(f"{name} mixes text files with files of rows: put them into two data sets.", param="dataset")
    rows: list[tuple[int, Row]] = []
    problems: list[Problem] = []
    number = 0
    for file in files:
        for row in _read(file):
            number += 1
            if isinstance(row, str):
                where = f"{file.name}, " if len(files) > 1 else ""
                problems.append(Problem("broken", number, where + row))
            else:
                rows.append((number, row))
            if limit is not None and number >= limit:
                return Rows(tuple(rows), tuple(problems), text == {True})
    return Rows(tuple(rows), tuple(problems), text == {True})


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix.lower() in SUFFIXES)


def _read(path: Path) -> Iterator[Row | str]:
    """Rows of one file; a text in place of a row says why it could not be read."""
    try:
        match path.suffix.lower():
            case ".jsonl":
                yield from _json_lines(path)
            case ".json":
                yield from _json(path)
            case ".csv":
                yield from _csv(path)
            case ".parquet":
                yield from _parquet(path)
            case ".txt":
                yield {"text": path.read_text(encoding="utf-8-sig")}
            case _:
                raise UserError(f"{path.name} is none of the files that can be read: {', '.join(SUFFIXES)}.", param="dataset")
    except UnicodeDecodeError:
        raise UserError(f"{path.name} is not UTF-8 text. Save it as UTF-8.", param="dataset") from None
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}.", param="dataset") from None


def _json(path: Path) -> Iterator[Row | str]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and lines[0].lstrip().startswith("{") and lines[0].rstrip().endswith("}"):
            yield from _json_lines(path)
            return
        raise UserError(
            f"{path.name} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}.", param="dataset"
        ) from None
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise UserError(f"{path.name} must hold a list of rows.", param="dataset")
        content = lists[0]
    if not isinstance(content, list):
        raise UserError(f"{path.name} must hold a list of rows.", param="dataset")
    for row in content:
        yield _checked(row)


def _json_lines(path: Path) -> Iterator[Row | str]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield _checked(json.loads(line))
            except json.JSONDecodeError as error:
                yield f"line {number} is not valid JSON: {error.msg}"


def _checked(row: Any) -> Row | str:
    if isinstance(row, dict):
        return row
    if isinstance(row, list) and row and all(isinstance(turn, dict) for turn in row):
        return {"messages": row}
    return f"it is not a row of columns but {json.dumps(row, ensure_ascii=False)[:60]}"


def _csv(path: Path) -> Iterator[Row | str]:
    csv.field_size_limit(1 << 27)
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.read(1 << 16)
        file.seek(0)
        try:
            dialect = csv.Sniffer().sniff(head.splitlines()[0] if head else ",", delimiters=",;\t")
            delimiter = dialect.delimiter
        except csv.Error:
            delimiter = ","
        try:
            for row in csv.DictReader(file, delimiter=delimiter, strict=True):
                if None in row:
                    yield f"it has {len(row) - 1 + len(row[None])} fields instead of {len(row) - 1}"
                else:
                    yield {key: value for key, value in row.items() if value is not None}
        except csv.Error as error:
            yield f"the rest of {path.name} cannot be read: {error}"


def _parquet(path: Path) -> Iterator[Row | str]:
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except ArrowException as error:
        raise UserError(f"{path.name} is not a Parquet file, or it is cut off: {error}", param="dataset") from None


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
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    rows = tuple(enumerate((dict(row) for row in table), 1))
    return Rows(rows, text=bool(rows) and list(rows[0][1]) in ([_TEXT[0]], [_TEXT[1]]))


def _was_fetched(repository: str) -> bool:
    from datasets.load import CachedDatasetModuleFactory

    try:
        CachedDatasetModuleFactory(repository).get_module()
    except FileNotFoundError:
        return False
    return True
