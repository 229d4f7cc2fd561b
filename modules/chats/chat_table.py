"""The chats of one user: their list with search, titles, settings, deletion."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from modules.chats.owned_rows import OwnedTable
from modules.chats.records import Chat, ListedChat, Place
from modules.chats.search_index import MOST_HITS, excerpts, indexed

TITLE_LENGTH = 200
PAGE_OF_CHATS = 100


class ChatTable(OwnedTable):
    """Raises NotFound for chats that are not there, deleted, or somebody else's."""

    def create(self, title: str = "", settings: Mapping[str, Any] | None = None) -> Chat:
        """A new, empty chat. A title given here is not replaced by an automatic one."""
        with self._transaction() as own:
            return own.new_chat(title[:TITLE_LENGTH], bool(title), settings or {})

    def get(self, chat_id: int) -> Chat:
        """Raises NotFound, for the chats of others too."""
        with self._reading() as own:
            return own.chat(chat_id)

    def page(self, search: str = "", limit: int = PAGE_OF_CHATS, after: Place | None = None) -> list[ListedChat]:
        """Pinned ones first, then the latest: the first `limit`, or those that come after a place.

        With `search`: of those whose title or any message holds it, whatever the case.
        """
        search = search.replace("\0", "").strip()
        conditions: list[str] = ["owner = ?", "deleted IS NULL"]
        values: list[Any] = [self._owner]
        if after is not None:
            conditions.append("(pinned, updated, id) < (?, ?, ?)")
            values += after
        source, messages = "chats", None
        with self._reading() as own:
            if search:
                messages, chats = (indexed(own.db, kind, search) for kind in ("message", "title"))
                if max(len(messages), len(chats)) < MOST_HITS:
                    source = "chats NOT INDEXED"  # they are few: taken one by one and sorted, not met on a walk through all
                    within = "SELECT chat_id FROM messages WHERE deleted IS NULL AND id IN (SELECT value FROM json_each(?))"
                    conditions.append(f"id IN (SELECT value FROM json_each(?) UNION {within})")
                    values += json.dumps(chats), json.dumps(messages)
                else:  # what stands in many is soon met: one chat is looked at after the other until the page is full
                    messages = None
                    within = (
                        "SELECT 1 FROM messages WHERE chat_id = chats.id AND messages.deleted IS NULL AND holds(content, ?)"
                    )
                    conditions.append(f"(holds(title, ?) OR EXISTS ({within}))")
                    values += search.lower(), search.lower()
            rows = own.db.execute(
                "SELECT id, title, pinned, updated,"
                " EXISTS (SELECT 1 FROM messages WHERE chat_id = chats.id AND state = 'streaming') AS running"
                f" FROM {source} WHERE {' AND '.join(conditions)} ORDER BY pinned DESC, updated DESC, id DESC LIMIT ?",
                (*values, limit),
            ).fetchall()
            found = excerpts(own.db, [row["id"] for row in rows], search, messages) if search else {}
        return [
            ListedChat(
                row["id"],
                row["title"],
                bool(row["pinned"]),
                row["updated"],
                bool(row["running"]),
                *found.get(row["id"], ("", None)),
            )
            for row in rows
        ]

    def rename(self, chat_id: int, title: str) -> Chat:
        """An empty title brings the automatic one back."""
        with self._transaction() as own:
            chat = own.chat(chat_id)
            automatic = own.automatic_title(chat_id)
            title = " ".join(title.split())[:TITLE_LENGTH]
            own.db.execute("UPDATE chats SET title = ?, titled = ? WHERE id = ?", (title or automatic, bool(title), chat.id))
            return own.touched(chat, updated=False)

    def pin(self, chat_id: int, pinned: bool) -> Chat:
        with self._transaction() as own:
            chat = own.chat(chat_id)
            own.db.execute("UPDATE chats SET pinned = ? WHERE id = ?", (pinned, chat.id))
            return own.touched(chat, updated=False)

    def change_settings(self, chat_id: int, values: Mapping[str, Any]) -> Chat:
        """Put `values` over the chat's own settings; None takes one away."""
        with self._transaction() as own:
            chat = own.chat(chat_id)
            merged = {key: value for key, value in {**chat.settings, **values}.items() if value is not None}
            own.db.execute("UPDATE chats SET settings = ? WHERE id = ?", (json.dumps(merged), chat.id))
            return own.touched(chat, updated=False)

    def replace_setting(self, name: str, old: str, new: str) -> None:
        """`new` for `old` in the setting `name` of every chat of the user, deleted ones too, and in what their replies were made with."""
        at = f'$."{name}"'
        with self._transaction() as own:
            own.db.execute(
                "UPDATE chats SET settings = json_set(settings, ?, ?), revision = revision + 1"
                " WHERE owner = ? AND json_extract(settings, ?) = ?",
                (at, new, self._owner, at, old),
            )
            runs = own.db.execute(
                "SELECT messages.id, fullkey FROM messages JOIN chats ON chats.id = chat_id, json_tree(extra, '$.runs') AS part"
                " WHERE owner = ? AND part.key = ? AND part.atom = ?",
                (self._owner, name, old),
            ).fetchall()
            for run in runs:
                own.db.execute(
                    "UPDATE messages SET extra = json_set(extra, ?, ?) WHERE id = ?", (run["fullkey"], new, run["id"])
                )

    def delete(self, chat_id: int) -> None:
        """Out of sight; `restore` brings it back for thirty days."""
        with self._transaction() as own:
            chat = own.chat(chat_id)
            own.db.execute("UPDATE chats SET deleted = ? WHERE id = ?", (time.time(), chat.id))

    def restore(self, chat_id: int) -> Chat:
        with self._transaction() as own:
            own.db.execute("UPDATE chats SET deleted = NULL WHERE id = ? AND owner = ?", (chat_id, self._owner))
            return own.chat(chat_id)

    def revision(self, chat_id: int) -> int | None:
        """Changes whenever the chat does, but not while a reply is being written; None where there is no such chat."""
        with self._reading() as own:
            row = own.db.execute(
                "SELECT revision FROM chats WHERE id = ? AND owner = ? AND deleted IS NULL", (chat_id, self._owner)
            ).fetchone()
        return row["revision"] if row else None

    def list_revision(self) -> str:
        """Changes whenever the conversation list of the user does."""
        with self._reading() as own:
            row = own.db.execute("SELECT revision FROM chat_lists WHERE owner = ?", (self._owner,)).fetchone()
        return str(row["revision"] if row else 0)
