"""Import and export: from what a file brings to chats in the store, and back."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from modules.chats.formats import markdown, openai, ours, pairs, sharegpt
from modules.chats.portable import PortableChat, PortableMessage
from modules.chats.records import pictures_of
from modules.chats.remarks import Remark
from modules.chats.store import ChatHistory
from modules.errors import DiskFull, NotFound, UserError

FORMATS = {form.NAME: form for form in (ours, openai, sharegpt, pairs, markdown)}
"""Those that chats go out in."""
LONGEST = 0.02
"""Seconds that one transaction of an import takes, and the one or other message more: so long others wait for the store."""
LEAST = 25
"""Messages of one transaction, however slow the machine is at the moment."""
PAUSE = 0.003
"""Seconds between two of them: who waits has a turn."""
_COMING = 0.0
"""When a chat was deleted that is still coming in: nobody sees it, and the next start removes it where the server was killed."""


@dataclass(frozen=True)
class Imported:
    """A chat that has come in. rank: its place among those of the file, by when they were written to; remarks: what is not in it."""

    id: int
    rank: int
    remarks: tuple[Remark, ...] = ()


def import_chats(history: ChatHistory, chats: Sequence[PortableChat]) -> list[Imported]:
    """New chats of the user, in the order of `chats`: they appear all at once or, where one cannot be kept, not at all.

    They come in by many short transactions, between which others have their turn. Pictures that are none are left out, with a
    remark. In the list the one that was written to last stands first. Raises DiskFull.
    """
    kept = [_with_pictures(history, chat) for chat in chats]
    ranks = _ranks(chats)
    made: list[Imported] = []
    steps = _steps(history, kept, ranks, made)
    try:
        while not _some(history, steps, made):
            time.sleep(PAUSE)
    except BaseException:
        with suppress(UserError, sqlite3.Error), history.transaction() as own:  # what stays is removed by the next start
            own.db.executemany("DELETE FROM chats WHERE id = ? AND deleted = ?", [(chat.id, _COMING) for chat in made])
        raise
    return made


def _some(history: ChatHistory, steps: Iterator[bool], made: Sequence[Imported]) -> bool:
    """Take steps in one transaction, as many as others can wait for; True when all are done, and what came in is seen."""
    until = time.monotonic() + LONGEST
    with history.transaction() as own:
        for count, _ in enumerate(steps, 1):
            if count >= LEAST and time.monotonic() > until:
                return False
        now = own.latest()
        seen = [(now + chat.rank * 1e-5, chat.id) for chat in made]
        own.db.executemany("UPDATE chats SET deleted = NULL, updated = ? WHERE id = ?", seen)
        return True


def _ranks(chats: Sequence[PortableChat]) -> list[int]:
    """The place of each chat in the order in which they were written to; those of unknown time come first."""
    last = [max((message.created for message in chat.messages), default=0.0) or chat.created for chat in chats]
    order = sorted(range(len(chats)), key=last.__getitem__)
    return [rank for _, rank in sorted(zip(order, range(len(chats)), strict=True))]


def _steps(
    history: ChatHistory,
    chats: Sequence[tuple[PortableChat, list[list[int]]]],
    ranks: Sequence[int],
    made: list[Imported],
) -> Iterator[bool]:
    """Brings in one message after the other; each step is to be part of a transaction. chats: with the pictures of each message."""
    for (chat, shown), rank in zip(chats, ranks, strict=True):
        now = time.time()
        with history.transaction() as own:
            cursor = own.db.execute(
                "INSERT INTO chats (owner, title, titled, pinned, created, updated, deleted, settings)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    own.owner,
                    chat.title,
                    chat.titled,
                    chat.pinned,
                    chat.created or now,
                    now,
                    _COMING,
                    json.dumps(dict(chat.settings)),
                ),
            )
        chat_id = cursor.lastrowid or 0
        made.append(Imported(chat_id, rank, chat.remarks))
        ids: list[int] = []
        for message, kept in zip(chat.messages, shown, strict=True):
            with history.transaction() as own:
                ids.append(_insert(own.db, chat_id, message, ids, kept, now))
            yield True
        with history.transaction() as own:
            own.db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (None if chat.shown is None else ids[chat.shown], chat_id))
        yield True


def _insert(
    db: sqlite3.Connection, chat_id: int, message: PortableMessage, ids: Sequence[int], pictures: Sequence[int], now: float
) -> int:
    """ids: of the messages before it."""
    extra = {key: value for key, value in message.extra.items() if key != "pictures"}
    cursor = db.execute(
        "INSERT INTO messages (chat_id, parent_id, role, content, state, model, sampling, figures, extra, created, changed)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            chat_id,
            None if message.parent is None else ids[message.parent],
            message.role,
            message.content,
            message.state,
            message.model,
            json.dumps(dict(message.sampling)),
            json.dumps(message.figures.stored()),
            json.dumps(extra | ({"pictures": list(pictures)} if pictures else {})),
            message.created or now,
            now,
        ),
    )
    return cursor.lastrowid or 0


def _with_pictures(history: ChatHistory, chat: PortableChat) -> tuple[PortableChat, list[list[int]]]:
    """Keep the pictures of a chat: (the chat without those that are none, the ids of each message's)."""
    shown: list[list[int]] = []
    remarks: list[Remark] = []
    messages = list(chat.messages)
    for at, message in enumerate(messages):
        ids: list[int] = []
        for data in message.pictures:
            try:
                ids.append(history.pictures.add(data).id)
            except DiskFull:
                raise
            except UserError:
                remarks.append(Remark("picture", {"n": at + 1}))
        if len(ids) < len(message.pictures) and not ids and not message.content.strip():
            messages[at] = replace(message, content="[picture]")
        shown.append(ids)
    return replace(chat, messages=tuple(messages), remarks=(*chat.remarks, *remarks)), shown


def export_chat(history: ChatHistory, chat_id: int) -> PortableChat:
    """A chat with all its branches. Raises NotFound, for the chats of others too."""
    chat = history.chats.get(chat_id)
    tree = history.messages.tree(chat_id)
    places = {message.id: place for place, message in enumerate(tree)}
    return PortableChat(
        tuple(
            PortableMessage(
                message.role,
                message.content,
                None if message.parent_id is None else places.get(message.parent_id),
                "cut" if message.state == "streaming" else message.state,
                message.created,
                message.model,
                message.sampling,
                message.figures,
                {key: value for key, value in message.extra.items() if key != "pictures"},
                tuple(history.pictures.data(id_)[0] for id_ in pictures_of(message.extra)),
            )
            for message in tree
        ),
        places.get(chat.leaf) if chat.leaf is not None else None,
        chat.title,
        chat.titled,
        chat.pinned,
        chat.created,
        chat.settings,
    )


def export_file(chat: PortableChat, form: str) -> tuple[str, str]:
    """(the name of a file, its text) in one of FORMATS. Raises NotFound."""
    if form not in FORMATS:
        raise NotFound(f"There is no form called {form}. There are: {', '.join(FORMATS)}.")
    name = re.sub(r"[^\w\- ]+", "", chat.title).strip()[:80] or "chat"
    return name + FORMATS[form].SUFFIX, FORMATS[form].write(chat)
