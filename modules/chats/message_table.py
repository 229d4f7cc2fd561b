"""The messages of one user's chats: branches, versions, marks, and replies being written."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from modules.chats.owned_rows import NewMessage, OwnedRows, OwnedTable, message_from
from modules.chats.records import Chat, Figures, PathMessage, State, StoredMessage, TokenStretch
from modules.errors import NotFound, UserError
from modules.generation.types import Role

_BRANCH = """
    WITH RECURSIVE branch (id) AS (
        SELECT ? UNION ALL SELECT messages.id FROM messages JOIN branch ON messages.parent_id = branch.id
    )
"""
_ABOVE = """
    WITH RECURSIVE above (id) AS (
        SELECT ? UNION ALL SELECT parent_id FROM messages JOIN above ON messages.id = above.id WHERE parent_id IS NOT NULL
    )
"""


class MessageTable(OwnedTable):
    """Raises NotFound for messages that are not there, deleted, or somebody else's."""

    def add(
        self,
        chat_id: int,
        parent_id: int | None,
        role: Role,
        content: str,
        *,
        state: State = "whole",
        model: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        figures: Figures | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> StoredMessage:
        """Append a message under `parent_id` (None: a first message), and show the branch that ends with it."""
        with self._transaction() as own:
            chat = own.chat(chat_id)
            if parent_id is not None:
                own.message_of(chat_id, parent_id)
            new = NewMessage(chat_id, parent_id, role, content, state, model, sampling or {}, figures or Figures(), extra or {})
            message = own.insert(new)
            own.show(chat, message.id)
            own.update_title(chat.id)
            return message

    def get(self, message_id: int) -> StoredMessage:
        """Raises NotFound, for the messages of others too."""
        with self._reading() as own:
            return own.message(message_id)[1]

    def path(self, chat_id: int, leaf: int | None = None) -> list[PathMessage]:
        """The branch that is shown (or the one that ends with `leaf`), first message first."""
        with self._reading() as own:
            chat = own.chat(chat_id)
            nodes = own.db.execute(
                "SELECT id, parent_id FROM messages WHERE chat_id = ? AND deleted IS NULL ORDER BY id", (chat_id,)
            ).fetchall()
            parents = {row["id"]: row["parent_id"] for row in nodes}
            children: dict[int | None, list[int]] = {}
            for row in nodes:
                children.setdefault(row["parent_id"], []).append(row["id"])
            ids: list[int] = []
            at = chat.leaf if leaf is None else leaf
            while at is not None and at in parents:
                ids.append(at)
                at = parents[at]
            ids.reverse()
            messages = {
                row["id"]: message_from(row)
                for row in own.db.execute(
                    "SELECT * FROM messages WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ids),)
                )
            }
        return [PathMessage(messages[id_], tuple(children[parents[id_]])) for id_ in ids]

    def answered(self, message_id: int) -> bool:
        """Whether something follows a message."""
        with self._reading() as own:
            own.message(message_id)
            row = own.db.execute(
                "SELECT 1 FROM messages WHERE parent_id = ? AND deleted IS NULL LIMIT 1", (message_id,)
            ).fetchone()
        return row is not None

    def tree(self, chat_id: int) -> list[StoredMessage]:
        """All messages of a chat, on every branch, oldest first."""
        with self._reading() as own:
            own.chat(chat_id)
            rows = own.db.execute("SELECT * FROM messages WHERE chat_id = ? AND deleted IS NULL ORDER BY id", (chat_id,))
            return [message_from(row) for row in rows]

    def select(self, message_id: int) -> Chat:
        """Show the branch that goes through `message_id`, down to its newest end."""
        with self._transaction() as own:
            chat, message = own.message(message_id)
            return own.show(chat, _newest_end(own, message.id))

    def show(self, message_id: int) -> Chat:
        """Show the branch that ends with `message_id`."""
        with self._transaction() as own:
            chat, message = own.message(message_id)
            return own.show(chat, message.id)

    def delete_branch(self, message_id: int) -> Chat:
        """Take a message and everything below it out of sight, and show the version beside it, or end at its parent."""
        with self._transaction() as own:
            chat, message = own.message(message_id)
            shown = {node.message.id for node in self.path(chat.id)}
            own.db.execute(
                f"{_BRANCH} UPDATE messages SET deleted = ? WHERE id IN branch AND deleted IS NULL", (message.id, time.time())
            )
            if message.id not in shown:
                return own.touched(chat)
            beside = own.db.execute(
                "SELECT id FROM messages WHERE chat_id = ? AND parent_id IS ? AND deleted IS NULL ORDER BY abs(id - ?) LIMIT 1",
                (chat.id, message.parent_id, message.id),
            ).fetchone()
            return own.show(chat, _newest_end(own, beside["id"]) if beside else message.parent_id)

    def restore_branch(self, message_id: int) -> Chat:
        """Undo `delete_branch`; what the message stands under comes back with it."""
        with self._transaction() as own:
            row = own.db.execute(
                "SELECT messages.* FROM messages JOIN chats ON chats.id = chat_id WHERE messages.id = ? AND owner = ?",
                (message_id, self._owner),
            ).fetchone()
            if row is None:
                raise NotFound("There is no such message.")
            own.db.execute(
                f"{_BRANCH} UPDATE messages SET deleted = NULL WHERE id IN branch AND deleted = ?", (message_id, row["deleted"])
            )
            own.db.execute(f"{_ABOVE} UPDATE messages SET deleted = NULL WHERE id IN above", (message_id,))
            return own.show(own.chat(row["chat_id"]), _newest_end(own, message_id))

    def branch_off(self, message_id: int) -> Chat:
        """A new chat with copies of the messages from the first to `message_id`."""
        with self._transaction() as own:
            chat, message = own.message(message_id)
            path = self.path(chat.id, leaf=message.id)
            copy = own.new_chat(chat.title, chat.titled, chat.settings)
            parent: int | None = None
            for old in (node.message for node in path):
                new = NewMessage(
                    copy.id,
                    parent,
                    old.role,
                    old.content,
                    "cut" if old.state == "streaming" else old.state,
                    old.model,
                    old.sampling,
                    old.figures,
                    old.extra,
                )
                parent = own.insert(new).id
            return own.show(copy, parent)

    def annotate(self, message_id: int, values: Mapping[str, Any]) -> StoredMessage:
        """Put `values` over a message's `extra`; None takes one away."""
        with self._transaction() as own:
            chat, message = own.message(message_id)
            merged = {key: value for key, value in {**message.extra, **values}.items() if value is not None}
            own.db.execute(
                "UPDATE messages SET extra = ?, changed = ? WHERE id = ?", (json.dumps(merged), time.time(), message.id)
            )
            own.touched(chat, updated=False)
            return own.message_of(chat.id, message.id)

    def marked(self, mark: str) -> list[StoredMessage]:
        """Messages of all chats of the user whose `extra` has `mark`, oldest first."""
        with self._reading() as own:
            rows = own.db.execute(
                "SELECT messages.* FROM messages JOIN chats ON chats.id = chat_id WHERE owner = ? AND chats.deleted IS NULL"
                " AND messages.deleted IS NULL AND json_extract(messages.extra, ?) IS NOT NULL ORDER BY messages.id",
                (self._owner, f'$."{mark}"'),
            ).fetchall()
            return [message_from(row) for row in rows]

    def reopen(self, message_id: int) -> StoredMessage:
        """Begin to write at the end of a message again. Raises UserError while it is being written."""
        with self._transaction() as own:
            chat, message = own.message(message_id)
            if message.state == "streaming":
                raise UserError("This reply is still being written.")
            own.db.execute("UPDATE messages SET state = 'streaming', changed = ? WHERE id = ?", (time.time(), message.id))
            own.touched(chat)
            return own.message_of(chat.id, message.id)

    def write(
        self,
        message_id: int,
        content: str,
        state: State,
        figures: Figures,
        *,
        model: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        tokens: TokenStretch | None = None,
    ) -> None:
        """Keep how far a reply has come, and the tokens that are new since the last time. For the one job that writes it.

        Nothing where the message is gone meanwhile.
        """
        with self._transaction() as own:
            written = own.db.execute(
                "UPDATE messages SET content = ?, state = ?, figures = ?, changed = ?,"
                " model = coalesce(?, model), sampling = coalesce(?, sampling)"
                " WHERE id = ? AND chat_id IN (SELECT id FROM chats WHERE owner = ?)",
                (
                    content,
                    state,
                    json.dumps(figures.stored()),
                    time.time(),
                    model,
                    None if sampling is None else json.dumps(dict(sampling)),
                    message_id,
                    self._owner,
                ),
            )
            if not written.rowcount:
                return
            if tokens is not None:
                own.add_tokens(message_id, tokens)
            if state != "streaming":
                chat_id = own.db.execute("SELECT chat_id FROM messages WHERE id = ?", (message_id,)).fetchone()["chat_id"]
                own.db.execute("UPDATE chats SET revision = revision + 1, updated = ? WHERE id = ?", (own.latest(), chat_id))
                own.update_title(chat_id)


def _newest_end(own: OwnedRows, message_id: int) -> int:
    while True:
        row = own.db.execute(
            "SELECT max(id) AS id FROM messages WHERE parent_id = ? AND deleted IS NULL", (message_id,)
        ).fetchone()
        if row["id"] is None:
            return message_id
        message_id = row["id"]
