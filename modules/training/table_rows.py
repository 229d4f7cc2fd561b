"""Rows of tables, one by one: CSV, and Parquet. A broken line costs itself alone, whatever its quotes would swallow."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from modules.errors import UserError
from modules.training.encodings import open_text
from modules.training.row import Broken, Note, Row, cleaned, whole

_LONGEST_FIELD = 1 << 27
_READ_AGAIN = 200_000_000
"""Characters that may be read again behind broken quotes in one file; from then on every line is a row."""


def csv_rows(path: Path) -> Iterator[Row | Broken | Note]:
    """The lines of a CSV file below its first one, which names the columns; a quoted field may hold line breaks."""
    csv.field_size_limit(_LONGEST_FIELD)
    with open_text(path, newline="") as file:
        lines = _Lines(file)
        head = lines.peek()
        try:
            delimiter = csv.Sniffer().sniff(head, delimiters=",;\t").delimiter
        except csv.Error:
            delimiter = ","
        columns: list[str] | None = None
        while lines.peek():
            number = lines.number
            fields = _fields(lines, delimiter, len(columns) if columns else None)
            if not fields:
                continue  # an empty line
            if columns is None:
                if isinstance(fields, str):
                    raise UserError(f"{path.name} has a first line that names no columns: {fields}.", param="dataset")
                columns, notes = _apart([name.strip() for name in fields])
                yield from notes
                continue
            if isinstance(fields, str):
                yield Broken(f"line {number}: {fields}")
                continue
            try:
                yield {name: whole(field) for name, field in zip(columns, fields, strict=False)}
            except ValueError as error:
                yield Broken(f"line {number}: {error}")


class _Lines:
    """Lines of a file, of which some can be put back. number: of the next one, from 1."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._waiting: deque[str] = deque()
        self._put_back = 0
        self.number = 1

    def peek(self) -> str:
        """The next line with its end; empty behind the last one."""
        if not self._waiting:
            self._waiting.append(self._file.readline())
        return self._waiting[0]

    def take(self) -> str:
        line = self.peek()
        if line:
            self._waiting.popleft()
            self.number += 1
        return line

    def put_back(self, lines: Sequence[str]) -> None:
        self._waiting.extendleft(reversed(lines))
        self._put_back += sum(map(len, lines))
        self.number -= len(lines)

    @property
    def may_go_together(self) -> bool:
        """Whether several lines are still tried as one row."""
        return self._put_back < _READ_AGAIN


def _fields(lines: _Lines, delimiter: str, wanted: int | None) -> list[str] | str:
    """The fields of the next row; a text says why it has none, and only its first line is taken then."""
    taken: list[str] = []

    def its_lines() -> Iterator[str]:
        while (lines.may_go_together or not taken) and (line := lines.take()):
            taken.append(line)
            yield line

    try:
        fields = next(csv.reader(its_lines(), delimiter=delimiter, strict=True), [])
        if wanted is None or not fields or len(fields) == wanted:
            return fields
        problem = f"it has {len(fields)} fields instead of {wanted}"
        if len(fields) < wanted and len(taken) == 1:
            return fields  # the last columns are left out
    except csv.Error as error:
        problem = "a quote is not closed" if "unexpected end" in str(error) else f"a quote is in the wrong place ({error})"
    lines.put_back(taken[1:])
    return problem


def parquet_rows(path: Path) -> Iterator[Row | Broken | Note]:
    """The rows of a Parquet file. Raises UserError where it is none."""
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns, notes = _apart(list(file.schema_arrow.names))
    except ArrowException as error:
        raise UserError(f"{path.name} is not a Parquet file, or it is cut off: {error}", param="dataset") from None
    yield from notes
    try:
        for batch in file.iter_batches(batch_size=1000):
            yield from _rows_of(batch.rename_columns(columns))
    except (ArrowException, OSError) as error:
        yield Broken(f"the rest of {path.name} cannot be read: {error}")


def _rows_of(batch: Any) -> Iterator[Row | Broken]:
    """All rows of one table of Arrow's; those that Python cannot hold one by one."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = (batch.slice(at, 1) for at in range(batch.num_rows))
    for row in rows:
        try:
            yield cleaned(row if isinstance(row, dict) else row.to_pylist()[0])
        except (ValueError, OverflowError) as error:
            yield Broken(f"it cannot be read: {error}")


def _apart(names: list[str]) -> tuple[list[str], list[Note]]:
    """Column names without repetition, as pandas makes them, and what is to be told about that."""
    counts = Counter(names)
    found: list[str] = []
    notes: list[Note] = []
    for name in names:
        other, number = name, 0
        while other in found or (number and other in counts):
            number += 1
            other = f"{name}.{number}"
        if number:
            notes.append(Note(f"the column {name or 'without a name'} stands there again: it is read as {other}"))
        found.append(other)
    return found, notes
