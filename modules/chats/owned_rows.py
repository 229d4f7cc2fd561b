"""The rows of one user in the chat history: what the tables of chats, messages and tokens share inside a transaction."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from modules.chats.database import Database
from modules.chats.records import Chat, Figures, State, StoredMessage, TokenStretch
from modules.chats.search import title_of
from modules.chats.token_data import pack
from modules.errors import NotFound
from modules.generation.types import Role

TITLE_FROM = 12
"""How many of the first messages a title may come from."""


@dataclass(frozen=True)
class NewMessage:
    """A message before it is kept. parent_id: None for a first message."""

    chat_id: int
    parent_id: int | None
    role: Role
    content: str
    state: State = "whole"
    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    extra: Mapping[str, Any] = field(default_factory=dict)


class OwnedRows:
    """Reads and writes within an open transaction. Raises NotFound for what is not there or belongs to somebody else."""

    def __init__(self, db: sqlite3.Connection, owner: str) -> None:
        self.db = db
        self.owner = owner

    def chat(self, chat_id: int) -> Chat:
        row = self.db.execute(
            "SELECT * FROM chats WHERE id = ? AND owner = ? AND deleted IS NULL", (chat_id, self.owner)
        ).fetchone()
        if row is None:
            raise NotFound("There is no such chat.")
        return Chat(
            row["id"],
            row["owner"],
            row["title"],
            bool(row["titled"]),
            bool(row["pinned"]),
            row["created"],
            row["updated"],
            row["leaf"],
            json.loads(row["settings"]),
            row["revision"],
        )

    def new_chat(self, title: str, titled: bool, settings: Mapping[str, Any]) -> Chat:
        """titled: people named it themselves."""
        cursor = self.db.execute(
            "INSERT INTO chats (owner, title, titled, created, updated, settings) VALUES (?, ?, ?, ?, ?, ?)",
            (self.owner, title, titled, time.time(), self.latest(), json.dumps(dict(settings))),
        )
        return self.chat(cursor.lastrowid or 0)

    def message(self, message_id: int) -> tuple[Chat, StoredMessage]:
        """A message, and the chat that it is in."""
        row = self.db.execute("SELECT chat_id FROM messages WHERE id = ?", (message_id,)).fetchone()
        if row is None:
            raise NotFound("There is no such message.")
        return self.chat(row["chat_id"]), self.message_of(row["chat_id"], message_id)

    def message_of(self, chat_id: int, message_id: int) -> StoredMessage:
        """A message of a chat that is known to be the user's."""
        row = self.db.execute(
            "SELECT * FROM messages WHERE id = ? AND chat_id = ? AND deleted IS NULL", (message_id, chat_id)
        ).fetchone()
        if row is None:
            raise NotFound("There is no such message.")
        return message_from(row)

    def insert(self, new: NewMessage) -> StoredMessage:
        """Keep a message in a chat that is known to be the user's."""
        now = time.time()
        cursor = self.db.execute(
            "INSERT INTO messages (chat_id, parent_id, role, content, state, model, sampling, figures, extra, created, changed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                new.chat_id,
                new.parent_id,
                new.role,
                new.content,
                new.state,
                new.model,
                json.dumps(dict(new.sampling)),
                json.dumps(new.figures.stored()),
                json.dumps(dict(new.extra)),
                now,
                now,
            ),
        )
        return self.message_of(new.chat_id, cursor.lastrowid or 0)

    def add_tokens(self, message_id: int, stretch: TokenStretch) -> None:
        if stretch.tokens:
            self.db.execute(
                "INSERT INTO message_tokens (message_id, at, data) VALUES (?, ?, ?)",
                (message_id, stretch.at, pack(stretch.tokens)),
            )

    def show(self, chat: Chat, leaf: int | None) -> Chat:
        """Show the branch that ends with `leaf`."""
        self.db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (leaf, chat.id))
        return self.touched(chat)

    def touched(self, chat: Chat, *, updated: bool = True) -> Chat:
        """The chat with its revision grown; updated: it comes first in the list."""
        self.db.execute(
            "UPDATE chats SET revision = revision + 1, updated = ? WHERE id = ?",
            (self.latest() if updated else chat.updated, chat.id),
        )
        return self.chat(chat.id)

    def latest(self) -> float:
        """Now, and after all that the user has: chats stay in their order though the clock was set back."""
        last = self.db.execute("SELECT max(updated) FROM chats WHERE owner = ?", (self.owner,)).fetchone()[0]
        return max(time.time(), (last or 0.0) + 0.001)

    def automatic_title(self, chat_id: int) -> str:
        rows = self.db.execute(
            "SELECT role, content, json_extract(figures, '$.opened') AS opened FROM messages WHERE id IN"
            " (SELECT id FROM messages WHERE chat_id = ? AND deleted IS NULL AND state != 'streaming' ORDER BY id LIMIT ?)"
            " ORDER BY id",
            (chat_id, TITLE_FROM),
        )
        return title_of((row["role"], row["content"], row["opened"]) for row in rows)

    def update_title(self, chat_id: int) -> None:
        """Bring the title of a chat that the user has not named up to date."""
        self.db.execute("UPDATE chats SET title = ? WHERE id = ? AND titled = 0", (self.automatic_title(chat_id), chat_id))


class OwnedTable:
    """Base of the tables: each method of theirs is one transaction, over the rows of one user."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner

    @contextmanager
    def _transaction(self) -> Iterator[OwnedRows]:
        with self._database.transaction() as db:
            yield OwnedRows(db, self._owner)

    @contextmanager
    def _reading(self) -> Iterator[OwnedRows]:
        with self._database.reading() as db:
            yield OwnedRows(db, self._owner)


def message_from(row: sqlite3.Row) -> StoredMessage:
    """A message from its row of the table."""
    return StoredMessage(
        id=row["id"],
        chat_id=row["chat_id"],
        parent_id=row["parent_id"],
        role=row["role"],
        content=row["content"],
        state=row["state"],
        created=row["created"],
        changed=row["changed"],
        model=row["model"],
        sampling=json.loads(row["sampling"]),
        figures=Figures.read(json.loads(row["figures"])),
        extra=json.loads(row["extra"]),
    )
