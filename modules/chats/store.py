"""Chat history in one SQLite file; what is in it belongs to a user each, and only `for_owner` reads or changes it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path

from modules.chats.chat_table import ChatTable
from modules.chats.database import Database
from modules.chats.images import PictureTable, forget_unused
from modules.chats.message_table import MessageTable
from modules.chats.owned_rows import OwnedRows, OwnedTable
from modules.chats.preference_table import PreferenceTable
from modules.chats.token_table import TokenTable

KEEP_DELETED_SECONDS = 30 * 24 * 3600


class ChatStore:
    """The history of all users. Opening it marks replies as cut that a killed server left unfinished."""

    def __init__(self, path: Path | str) -> None:
        self.database = Database(path)
        with self.database.transaction() as db:
            db.execute(
                "UPDATE messages SET state = 'cut', changed = ?, figures = json_set(figures, '$.ending', 'killed')"
                " WHERE state = 'streaming'",
                (time.time(),),
            )
            db.execute("DELETE FROM chats WHERE deleted < ?", (time.time() - KEEP_DELETED_SECONDS,))
            forget_unused(db)

    def for_owner(self, owner: str) -> ChatHistory:
        """All that one user has, and nothing of others."""
        return ChatHistory(self.database, owner)

    def close(self) -> None:
        self.database.close()


class ChatHistory(OwnedTable):
    """The history of one user, a table for each kind. Every method of theirs is one transaction."""

    def __init__(self, database: Database, owner: str) -> None:
        super().__init__(database, owner)
        self.chats = ChatTable(database, owner)
        self.messages = MessageTable(database, owner)
        self.tokens = TokenTable(database, owner)
        self.pictures = PictureTable(database, owner)
        self.preferences = PreferenceTable(database, owner)

    def transaction(self) -> AbstractContextManager[OwnedRows]:
        """Several steps that are kept together or not at all."""
        return self._transaction()
