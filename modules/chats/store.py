"""Chat history in one SQLite file. Every method is one transaction; chats belong to their owner and to nobody else."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

from modules.chats.records import Chat, Figures, ListedChat, PathMessage, Place, State, StoredMessage, TokenStretch
from modules.chats.schema import migrate
from modules.chats.search import excerpt, holds, matches_of, title_of
from modules.chats.token_data import pack, unpack
from modules.errors import NotFound, Unavailable, UserError
from modules.generation.types import Role, Token
from modules.settings.disk import full_disk_told

KEEP_DELETED_SECONDS = 30 * 24 * 3600
TITLE_LENGTH = 200
TITLE_FROM = 12
"""How many of the first messages a title may come from."""
PAGE_OF_CHATS = 100
MOST_HITS = 3000
"""What is found in more messages than this stands in so many chats that they are looked through from the latest on."""
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


class ChatStore:
    """One file, one connection, one lock. Opening it marks replies as cut that a killed server left unfinished."""

    def __init__(self, path: Path | str) -> None:
        self._lock = threading.RLock()
        self._path = path
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # what was said to be kept is kept when the power is cut
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.create_function("holds", 2, holds, deterministic=True)
            with full_disk_told(path):
                migrate(self._db)
        except sqlite3.DatabaseError as error:
            raise Unavailable(
                f"The chat history {path} cannot be opened ({error}). Move it away, or choose another folder with --data-dir."
            ) from None
        self._recover()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """One transaction: for what has a file of its own, and for several steps that are kept together or not at all."""
        return self._transaction()

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._reading()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Raises DiskFull, and NotFound for numbers that no row can have; nothing has changed then. One in another is part of it."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            with self._told():
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # SQLite ends it by itself where the disk is full
                        self._db.execute("ROLLBACK")
                    raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            yield self._db

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with full_disk_told(self._path):
                yield
        except OverflowError:
            raise NotFound("There is nothing of this number: it is larger than any.") from None

    def _recover(self) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE messages SET state = 'cut', changed = ?, figures = json_set(figures, '$.ending', 'killed')"
                " WHERE state = 'streaming'",
                (time.time(),),
            )
            db.execute("DELETE FROM chats WHERE deleted < ?", (time.time() - KEEP_DELETED_SECONDS,))

    # --- chats

    def create_chat(self, owner: str, title: str = "", settings: Mapping[str, Any] | None = None) -> Chat:
        """A new, empty chat. A title given here is not replaced by an automatic one."""
        with self._transaction() as db:
            return self._new_chat(db, owner, title[:TITLE_LENGTH], bool(title), settings or {})

    def chat(self, owner: str, chat_id: int) -> Chat:
        """Raises NotFound, for the chats of others too."""
        with self._reading() as db:
            return self._chat(db, owner, chat_id)

    def chats(self, owner: str, search: str = "", limit: int = PAGE_OF_CHATS, after: Place | None = None) -> list[ListedChat]:
        """Pinned ones first, then the latest: the first `limit`, or those that come after a place.

        With `search`: of those whose title or any message holds it, whatever the case.
        """
        search = search.replace("\0", "").strip()
        conditions: list[str] = ["owner = ?", "deleted IS NULL"]
        values: list[Any] = [owner]
        if after is not None:
            conditions.append("(pinned, updated, id) < (?, ?, ?)")
            values += after
        source, messages = "chats", None
        with self._reading() as db:
            if search:
                messages, chats = (self._indexed(db, kind, search) for kind in ("message", "title"))
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
            rows = db.execute(
                "SELECT id, title, pinned, updated,"
                " EXISTS (SELECT 1 FROM messages WHERE chat_id = chats.id AND state = 'streaming') AS running"
                f" FROM {source} WHERE {' AND '.join(conditions)} ORDER BY pinned DESC, updated DESC, id DESC LIMIT ?",
                (*values, limit),
            ).fetchall()
            found = self._excerpts(db, [row["id"] for row in rows], search, messages) if search else {}
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

    def rename(self, owner: str, chat_id: int, title: str) -> Chat:
        """An empty title brings the automatic one back."""
        with self._transaction() as db:
            chat = self._chat(db, owner, chat_id)
            automatic = self._automatic_title(db, chat_id)
            title = " ".join(title.split())[:TITLE_LENGTH]
            db.execute("UPDATE chats SET title = ?, titled = ? WHERE id = ?", (title or automatic, bool(title), chat.id))
            return self._touched(db, chat, updated=False)

    def pin(self, owner: str, chat_id: int, pinned: bool) -> Chat:
        with self._transaction() as db:
            chat = self._chat(db, owner, chat_id)
            db.execute("UPDATE chats SET pinned = ? WHERE id = ?", (pinned, chat.id))
            return self._touched(db, chat, updated=False)

    def change_settings(self, owner: str, chat_id: int, values: Mapping[str, Any]) -> Chat:
        """Put `values` over the chat's own settings; None takes one away."""
        with self._transaction() as db:
            chat = self._chat(db, owner, chat_id)
            merged = {key: value for key, value in {**chat.settings, **values}.items() if value is not None}
            db.execute("UPDATE chats SET settings = ? WHERE id = ?", (json.dumps(merged), chat.id))
            return self._touched(db, chat, updated=False)

    def replace_setting(self, owner: str, name: str, old: str, new: str) -> None:
        """`new` for `old` in the setting `name` of every chat of `owner`, deleted ones too, and in what their replies were made with."""
        at = f'$."{name}"'
        with self._transaction() as db:
            db.execute(
                "UPDATE chats SET settings = json_set(settings, ?, ?), revision = revision + 1"
                " WHERE owner = ? AND json_extract(settings, ?) = ?",
                (at, new, owner, at, old),
            )
            runs = db.execute(
                "SELECT messages.id, fullkey FROM messages JOIN chats ON chats.id = chat_id, json_tree(extra, '$.runs') AS part"
                " WHERE owner = ? AND part.key = ? AND part.atom = ?",
                (owner, name, old),
            ).fetchall()
            for run in runs:
                db.execute("UPDATE messages SET extra = json_set(extra, ?, ?) WHERE id = ?", (run["fullkey"], new, run["id"]))

    def delete_chat(self, owner: str, chat_id: int) -> None:
        """Out of sight; `restore_chat` brings it back for thirty days."""
        with self._transaction() as db:
            chat = self._chat(db, owner, chat_id)
            db.execute("UPDATE chats SET deleted = ? WHERE id = ?", (time.time(), chat.id))

    def restore_chat(self, owner: str, chat_id: int) -> Chat:
        with self._transaction() as db:
            db.execute("UPDATE chats SET deleted = NULL WHERE id = ? AND owner = ?", (chat_id, owner))
            return self._chat(db, owner, chat_id)

    # --- messages

    def add(
        self,
        owner: str,
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
        with self._transaction() as db:
            chat = self._chat(db, owner, chat_id)
            if parent_id is not None:
                self._message(db, chat_id, parent_id)
            message = self._insert(db, chat_id, parent_id, role, content, state, model, sampling, figures, extra)
            self._show(db, chat, message.id)
            self._name(db, chat.id)
            return message

    def message(self, owner: str, message_id: int) -> StoredMessage:
        """Raises NotFound, for the messages of others too."""
        with self._reading() as db:
            return self._owned(db, owner, message_id)[1]

    def path(self, owner: str, chat_id: int, leaf: int | None = None) -> list[PathMessage]:
        """The branch that is shown (or the one that ends with `leaf`), first message first."""
        with self._reading() as db:
            chat = self._chat(db, owner, chat_id)
            nodes = db.execute(
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
            messages = self._messages(db, ids)
        return [PathMessage(messages[id_], tuple(children[parents[id_]])) for id_ in ids]

    def answered(self, owner: str, message_id: int) -> bool:
        """Whether something follows a message."""
        with self._reading() as db:
            self._owned(db, owner, message_id)
            row = db.execute("SELECT 1 FROM messages WHERE parent_id = ? AND deleted IS NULL LIMIT 1", (message_id,)).fetchone()
        return row is not None

    def tree(self, owner: str, chat_id: int) -> list[StoredMessage]:
        """All messages of a chat, on every branch, oldest first."""
        with self._reading() as db:
            self._chat(db, owner, chat_id)
            rows = db.execute("SELECT * FROM messages WHERE chat_id = ? AND deleted IS NULL ORDER BY id", (chat_id,))
            return [_message(row) for row in rows]

    def select(self, owner: str, message_id: int) -> Chat:
        """Show the branch that goes through `message_id`, down to its newest end."""
        with self._transaction() as db:
            chat, message = self._owned(db, owner, message_id)
            return self._show(db, chat, self._newest_end(db, message.id))

    def show(self, owner: str, message_id: int) -> Chat:
        """Show the branch that ends with `message_id`."""
        with self._transaction() as db:
            chat, message = self._owned(db, owner, message_id)
            return self._show(db, chat, message.id)

    def delete_branch(self, owner: str, message_id: int) -> Chat:
        """Take a message and everything below it out of sight, and show the version beside it, or end at its parent."""
        with self._transaction() as db:
            chat, message = self._owned(db, owner, message_id)
            shown = {node.message.id for node in self.path(owner, chat.id)}
            db.execute(
                f"{_BRANCH} UPDATE messages SET deleted = ? WHERE id IN branch AND deleted IS NULL", (message.id, time.time())
            )
            if message.id not in shown:
                return self._touched(db, chat)
            beside = db.execute(
                "SELECT id FROM messages WHERE chat_id = ? AND parent_id IS ? AND deleted IS NULL ORDER BY abs(id - ?) LIMIT 1",
                (chat.id, message.parent_id, message.id),
            ).fetchone()
            return self._show(db, chat, self._newest_end(db, beside["id"]) if beside else message.parent_id)

    def restore_branch(self, owner: str, message_id: int) -> Chat:
        """Undo `delete_branch`; what the message stands under comes back with it."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT messages.* FROM messages JOIN chats ON chats.id = chat_id WHERE messages.id = ? AND owner = ?",
                (message_id, owner),
            ).fetchone()
            if row is None:
                raise NotFound("There is no such message.")
            db.execute(
                f"{_BRANCH} UPDATE messages SET deleted = NULL WHERE id IN branch AND deleted = ?", (message_id, row["deleted"])
            )
            db.execute(f"{_ABOVE} UPDATE messages SET deleted = NULL WHERE id IN above", (message_id,))
            return self._show(db, self._chat(db, owner, row["chat_id"]), self._newest_end(db, message_id))

    def branch_off(self, owner: str, message_id: int) -> Chat:
        """A new chat with copies of the messages from the first to `message_id`."""
        with self._transaction() as db:
            chat, message = self._owned(db, owner, message_id)
            path = self.path(owner, chat.id, leaf=message.id)
            copy = self._new_chat(db, owner, chat.title, chat.titled, chat.settings)
            parent: int | None = None
            for node in path:
                old = node.message
                state = "cut" if old.state == "streaming" else old.state
                parent = self._insert(
                    db, copy.id, parent, old.role, old.content, state, old.model, old.sampling, old.figures, old.extra
                ).id
            return self._show(db, copy, parent)

    def annotate(self, owner: str, message_id: int, values: Mapping[str, Any]) -> StoredMessage:
        """Put `values` over a message's `extra`; None takes one away."""
        with self._transaction() as db:
            chat, message = self._owned(db, owner, message_id)
            merged = {key: value for key, value in {**message.extra, **values}.items() if value is not None}
            db.execute("UPDATE messages SET extra = ?, changed = ? WHERE id = ?", (json.dumps(merged), time.time(), message.id))
            self._touched(db, chat, updated=False)
            return self._message(db, chat.id, message.id)

    def marked(self, owner: str, mark: str) -> list[StoredMessage]:
        """Messages of all chats of `owner` whose `extra` has `mark`, oldest first."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT messages.* FROM messages JOIN chats ON chats.id = chat_id WHERE owner = ? AND chats.deleted IS NULL"
                " AND messages.deleted IS NULL AND json_extract(messages.extra, ?) IS NOT NULL ORDER BY messages.id",
                (owner, f'$."{mark}"'),
            ).fetchall()
            return [_message(row) for row in rows]

    # --- a reply being written

    def reopen(self, owner: str, message_id: int) -> StoredMessage:
        """Begin to write at the end of a message again. Raises UserError while it is being written."""
        with self._transaction() as db:
            chat, message = self._owned(db, owner, message_id)
            if message.state == "streaming":
                raise UserError("This reply is still being written.")
            db.execute("UPDATE messages SET state = 'streaming', changed = ? WHERE id = ?", (time.time(), message.id))
            self._touched(db, chat)
            return self._message(db, chat.id, message.id)

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
        """Keep how far a reply has come, and the tokens that are new since the last time. For the one job that writes it."""
        with self._transaction() as db:
            db.execute(
                "UPDATE messages SET content = ?, state = ?, figures = ?, changed = ?,"
                " model = coalesce(?, model), sampling = coalesce(?, sampling) WHERE id = ?",
                (
                    content,
                    state,
                    json.dumps(figures.stored()),
                    time.time(),
                    model,
                    None if sampling is None else json.dumps(dict(sampling)),
                    message_id,
                ),
            )
            if tokens is not None:
                self._keep_tokens(db, message_id, tokens)
            if state != "streaming":
                chat_id = db.execute("SELECT chat_id FROM messages WHERE id = ?", (message_id,)).fetchone()["chat_id"]
                owner = db.execute("SELECT owner FROM chats WHERE id = ?", (chat_id,)).fetchone()["owner"]
                db.execute(
                    "UPDATE chats SET revision = revision + 1, updated = ? WHERE id = ?", (self.latest(db, owner), chat_id)
                )
                self._name(db, chat_id)

    # --- tokens with their probabilities

    def tokens(self, owner: str, message_id: int) -> list[TokenStretch]:
        """What was kept of a message's tokens, in the order of the text: one stretch for each time it was written at."""
        with self._reading() as db:
            self._owned(db, owner, message_id)
            rows = db.execute("SELECT at, data FROM message_tokens WHERE message_id = ? ORDER BY id", (message_id,)).fetchall()
        stretches: dict[int, list[Token]] = {}
        for row in rows:
            stretches.setdefault(row["at"], []).extend(unpack(row["data"]))
        return [TokenStretch(at, tuple(tokens)) for at, tokens in stretches.items()]

    def set_tokens(self, owner: str, message_id: int, stretches: Sequence[TokenStretch]) -> None:
        """Keep `stretches` in place of what is known of a message's tokens."""
        with self._transaction() as db:
            self._owned(db, owner, message_id)
            db.execute("DELETE FROM message_tokens WHERE message_id = ?", (message_id,))
            for stretch in stretches:
                self._keep_tokens(db, message_id, stretch)

    def with_tokens(self, message_ids: Sequence[int]) -> set[int]:
        """Those of the messages whose tokens are known."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT DISTINCT message_id FROM message_tokens WHERE message_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(message_ids)),),
            ).fetchall()
        return {row["message_id"] for row in rows}

    # --- preferences

    def preference(self, owner: str, name: str, default: Any = None) -> Any:
        with self._reading() as db:
            row = db.execute("SELECT value FROM preferences WHERE owner = ? AND name = ?", (owner, name)).fetchone()
        return default if row is None else json.loads(row["value"])

    def set_preference(self, owner: str, name: str, value: Any) -> None:
        """Remember something for `owner`, across restarts; None forgets it."""
        with self._transaction() as db:
            if value is None:
                db.execute("DELETE FROM preferences WHERE owner = ? AND name = ?", (owner, name))
            else:
                db.execute("INSERT OR REPLACE INTO preferences VALUES (?, ?, ?)", (owner, name, json.dumps(value)))

    def revision(self, owner: str, chat_id: int) -> int | None:
        """Changes whenever the chat does, but not while a reply is being written; None where there is no such chat."""
        with self._reading() as db:
            row = db.execute(
                "SELECT revision FROM chats WHERE id = ? AND owner = ? AND deleted IS NULL", (chat_id, owner)
            ).fetchone()
        return row["revision"] if row else None

    def list_revision(self, owner: str) -> str:
        """Changes whenever the conversation list of `owner` does."""
        with self._reading() as db:
            row = db.execute("SELECT revision FROM chat_lists WHERE owner = ?", (owner,)).fetchone()
        return str(row["revision"] if row else 0)

    # --- inside a transaction

    def _keep_tokens(self, db: sqlite3.Connection, message_id: int, stretch: TokenStretch) -> None:
        if stretch.tokens:
            db.execute(
                "INSERT INTO message_tokens (message_id, at, data) VALUES (?, ?, ?)",
                (message_id, stretch.at, pack(stretch.tokens)),
            )

    def _new_chat(self, db: sqlite3.Connection, owner: str, title: str, given: bool, settings: Mapping[str, Any]) -> Chat:
        now = time.time()
        cursor = db.execute(
            "INSERT INTO chats (owner, title, titled, created, updated, settings) VALUES (?, ?, ?, ?, ?, ?)",
            (owner, title, given, now, self.latest(db, owner), json.dumps(dict(settings))),
        )
        return self._chat(db, owner, cursor.lastrowid or 0)

    def latest(self, db: sqlite3.Connection, owner: str) -> float:
        """Now, and after all that `owner` has: chats stay in their order though the clock was set back."""
        last = db.execute("SELECT max(updated) FROM chats WHERE owner = ?", (owner,)).fetchone()[0]
        return max(time.time(), (last or 0.0) + 0.001)

    def _chat(self, db: sqlite3.Connection, owner: str, chat_id: int) -> Chat:
        row = db.execute("SELECT * FROM chats WHERE id = ? AND owner = ? AND deleted IS NULL", (chat_id, owner)).fetchone()
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

    def _message(self, db: sqlite3.Connection, chat_id: int, message_id: int) -> StoredMessage:
        row = db.execute(
            "SELECT * FROM messages WHERE id = ? AND chat_id = ? AND deleted IS NULL", (message_id, chat_id)
        ).fetchone()
        if row is None:
            raise NotFound("There is no such message.")
        return _message(row)

    def _owned(self, db: sqlite3.Connection, owner: str, message_id: int) -> tuple[Chat, StoredMessage]:
        row = db.execute("SELECT chat_id FROM messages WHERE id = ?", (message_id,)).fetchone()
        if row is None:
            raise NotFound("There is no such message.")
        return self._chat(db, owner, row["chat_id"]), self._message(db, row["chat_id"], message_id)

    def _messages(self, db: sqlite3.Connection, ids: Sequence[int]) -> dict[int, StoredMessage]:
        rows = db.execute("SELECT * FROM messages WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),))
        return {row["id"]: _message(row) for row in rows}

    def _insert(
        self,
        db: sqlite3.Connection,
        chat_id: int,
        parent_id: int | None,
        role: Role,
        content: str,
        state: State,
        model: str | None,
        sampling: Mapping[str, Any] | None,
        figures: Figures | None,
        extra: Mapping[str, Any] | None,
    ) -> StoredMessage:
        now = time.time()
        cursor = db.execute(
            "INSERT INTO messages (chat_id, parent_id, role, content, state, model, sampling, figures, extra, created, changed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                chat_id,
                parent_id,
                role,
                content,
                state,
                model,
                json.dumps(dict(sampling or {})),
                json.dumps((figures or Figures()).stored()),
                json.dumps(dict(extra or {})),
                now,
                now,
            ),
        )
        return self._message(db, chat_id, cursor.lastrowid or 0)

    def _show(self, db: sqlite3.Connection, chat: Chat, leaf: int | None) -> Chat:
        db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (leaf, chat.id))
        return self._touched(db, chat)

    def _touched(self, db: sqlite3.Connection, chat: Chat, *, updated: bool = True) -> Chat:
        db.execute(
            "UPDATE chats SET revision = revision + 1, updated = ? WHERE id = ?",
            (self.latest(db, chat.owner) if updated else chat.updated, chat.id),
        )
        return self._chat(db, chat.owner, chat.id)

    def _newest_end(self, db: sqlite3.Connection, message_id: int) -> int:
        while True:
            row = db.execute(
                "SELECT max(id) AS id FROM messages WHERE parent_id = ? AND deleted IS NULL", (message_id,)
            ).fetchone()
            if row["id"] is None:
                return message_id
            message_id = row["id"]

    def _automatic_title(self, db: sqlite3.Connection, chat_id: int) -> str:
        rows = db.execute(
            "SELECT role, content, json_extract(figures, '$.opened') AS opened FROM messages WHERE id IN"
            " (SELECT id FROM messages WHERE chat_id = ? AND deleted IS NULL AND state != 'streaming' ORDER BY id LIMIT ?)"
            " ORDER BY id",
            (chat_id, TITLE_FROM),
        )
        return title_of((row["role"], row["content"], row["opened"]) for row in rows)

    def _name(self, db: sqlite3.Connection, chat_id: int) -> None:
        """Bring the title of a chat that the user has not named up to date."""
        db.execute("UPDATE chats SET title = ? WHERE id = ? AND titled = 0", (self._automatic_title(db, chat_id), chat_id))

    def _indexed(self, db: sqlite3.Connection, kind: Literal["message", "title"], search: str) -> list[int]:
        """The first MOST_HITS messages, or chats by their title, that hold `search`; those of all owners."""
        if len(search) >= 3:
            sql, values = f"SELECT rowid AS id FROM {kind}_index WHERE {kind}_index MATCH ?", [matches_of(search)]
        else:  # it begins some of the trigrams
            small = search.lower()
            sql, values = f"SELECT doc AS id FROM {kind}_terms WHERE term >= ? AND term < ?", [small, small + "\U0010ffff"]
        return [row["id"] for row in db.execute(f"{sql} LIMIT ?", (*values, MOST_HITS))]

    def _excerpts(
        self, db: sqlite3.Connection, chats: Sequence[int], search: str, messages: Sequence[int] | None
    ) -> dict[int, tuple[str, int]]:
        """Chat id → the text around `search` in the last of its messages that holds it, and that message.

        messages: all that hold it, where they are known.
        """
        known = "" if messages is None else "AND id IN (SELECT value FROM json_each(?))"
        rows = db.execute(
            "SELECT max(id) AS id, chat_id, content FROM messages"  # content is that of the row with the greatest id
            f" WHERE chat_id IN (SELECT value FROM json_each(?)) AND deleted IS NULL {known} AND holds(content, ?) GROUP BY chat_id",
            (json.dumps(list(chats)), *([] if messages is None else [json.dumps(list(messages))]), search.lower()),
        )
        return {row["chat_id"]: (excerpt(row["content"], search), row["id"]) for row in rows}


def _message(row: sqlite3.Row) -> StoredMessage:
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
