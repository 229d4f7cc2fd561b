"""The SQLite file of the chat history: one connection, one lock, transactions."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modules.chats.schema import migrate
from modules.chats.search import holds
from modules.errors import NotFound, Unavailable
from modules.settings.disk import full_disk_told

_NOTE_CHANGES = "".join(
    f"CREATE TEMP TRIGGER {table}_{verb} AFTER {verb} ON main.{table} BEGIN SELECT changed_for({row}.owner); END;\n"
    for table in ("chats", "preferences")
    for verb, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old"))
)
"""Triggers of this connection alone: the file itself stays readable by every program."""


class Database:
    """Opened and brought to the newest schema. Raises Unavailable where that cannot be. Safe to use from any thread."""

    def __init__(self, path: Path | str) -> None:
        self._lock = threading.RLock()
        self._path = path
        self._changed: set[str] = set()
        self.watchers: list[Callable[[set[str]], None]] = []
        """Called after each transaction with the owners whose chats or preferences it has changed; they must not block."""
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # what was said to be kept is kept when the power is cut
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.create_function("holds", 2, holds, deterministic=True)
            self._db.create_function("changed_for", 1, self._note_change)
            with full_disk_told(path):
                migrate(self._db)
            self._db.executescript(_NOTE_CHANGES)
        except sqlite3.DatabaseError as error:
            raise Unavailable(
                f"The chat history {path} cannot be opened ({error}). Move it away, or choose another folder with --data-dir."
            ) from None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Raises DiskFull, and NotFound for numbers that no row can have; nothing has changed then. One in another is part of it."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            with self._errors():
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    self._changed.clear()
                    if self._db.in_transaction:  # SQLite ends it by itself where the disk is full
                        self._db.execute("ROLLBACK")
                    raise
            changed, self._changed = self._changed, set()
            if changed:
                for watch in self.watchers:
                    watch(changed)

    def _note_change(self, owner: str) -> None:
        self._changed.add(owner)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            yield self._db

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with full_disk_told(self._path):
                yield
        except OverflowError:
            raise NotFound("There is nothing of this number: it is larger than any.") from None
