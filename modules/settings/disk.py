"""What SQLite says of a disk without room, as an error that says so."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modules.errors import DiskFull

_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
"""The disk is full, or does not take what is written."""


@contextmanager
def full_disk_told(path: Path | str) -> Iterator[None]:
    """Raises DiskFull in place of SQLite's error where the disk of the database `path` has no room."""
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NO_ROOM:
            raise DiskFull(path) from error
        raise
