"""Full-text search of messages and titles, over the trigram indexes of the database. Of all owners: who asks picks theirs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Literal

from modules.chats.search import excerpt, matches_of

MOST_HITS = 3000
"""What is found in more messages than this stands in so many chats that they are looked through from the latest on."""


def indexed(db: sqlite3.Connection, kind: Literal["message", "title"], search: str) -> list[int]:
    """The first MOST_HITS messages, or chats by their title, that hold `search`."""
    if len(search) >= 3:
        sql, values = f"SELECT rowid AS id FROM {kind}_index WHERE {kind}_index MATCH ?", [matches_of(search)]
    else:  # it begins some of the trigrams
        small = search.lower()
        sql, values = f"SELECT doc AS id FROM {kind}_terms WHERE term >= ? AND term < ?", [small, small + "\U0010ffff"]
    return [row["id"] for row in db.execute(f"{sql} LIMIT ?", (*values, MOST_HITS))]


def excerpts(
    db: sqlite3.Connection, chats: Sequence[int], search: str, messages: Sequence[int] | None
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
