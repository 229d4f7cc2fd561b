"""Import and export: from a file of any known form to a chat in the store, and back."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from typing import Any

from modules.chats.formats import markdown, openai, ours, pairs, sharegpt
from modules.chats.pictures import PictureStore
from modules.chats.portable import PortableChat, PortableMessage
from modules.chats.records import Chat, pictures_of
from modules.chats.store import ChatStore
from modules.errors import NotFound, UserError

FORMATS = {form.NAME: form for form in (ours, openai, sharegpt, pairs, markdown)}
LARGEST_FILE = 100 * 1024 * 1024
MOST_CHATS = 2000
"""Of one file."""


def read_file(data: bytes) -> list[PortableChat]:
    """The chats in a file, whatever its form. Raises UserError with one sentence that says what is wrong."""
    if len(data) > LARGEST_FILE:
        raise UserError(f"The file is too large: {LARGEST_FILE // 1024**2} MB at most.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError("The file is no text: chats come as JSON or Markdown.") from None
    if not text.strip():
        raise UserError("The file is empty.")
    if markdown.fits(text) and text.lstrip()[:1] not in "{[":
        return markdown.read(text)
    chats = [chat for value in _values(text) for chat in _read_value(value)]
    if len(chats) > MOST_CHATS:
        raise UserError(f"The file has {len(chats)} chats; {MOST_CHATS} are the most at a time.")
    if not chats:
        raise UserError("There is no chat in this file.")
    return chats


def _values(text: str) -> list[Any]:
    """The JSON of a file: one value, the items of a list, or one value on each line."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise UserError("The file is nested too deeply to be a chat.") from None
    except ValueError as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2 or not lines[0].lstrip().startswith("{"):
            raise UserError(
                "The file is in no form that is known: chats come as JSON (ours, OpenAI's, ShareGPT, or internal and visible) "
                "or as Markdown with a heading for each turn."
            ) from error
        try:
            value = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            raise UserError("The file is not valid JSON.") from None
    if "\\u" in text and not _is_text(value):
        raise UserError("The file has half of a surrogate pair (\\ud800 to \\udfff), which is no character.")
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return [{"messages": value}]
    return value if isinstance(value, list) else [value]


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_value(value: Any) -> list[PortableChat]:
    for form in (ours, openai, sharegpt, pairs):
        if form.fits(value):
            return form.read(value)
    raise UserError(
        "The JSON is no chat: it needs `messages`, `conversations`, `internal` and `visible`, or what Textloom itself exports."
    )


def import_chats(store: ChatStore, pictures: PictureStore, owner: str, chats: list[PortableChat]) -> list[Chat]:
    """New chats of `owner` with what a file holds: all of them or, where one cannot be kept, none. Raises UserError."""
    kept = [[[pictures.add(owner, data).id for data in message.pictures] for message in chat.messages] for chat in chats]
    with store.transaction() as db:
        ids = [_import(db, owner, chat, shown) for chat, shown in zip(chats, kept, strict=True)]
    return [store.chat(owner, id_) for id_ in ids]


def _import(db: sqlite3.Connection, owner: str, chat: PortableChat, pictures: list[list[int]]) -> int:
    now = time.time()
    cursor = db.execute(
        "INSERT INTO chats (owner, title, titled, pinned, created, updated, settings) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (owner, chat.title, chat.titled, chat.pinned, chat.created or now, now, json.dumps(dict(chat.settings))),
    )
    chat_id = cursor.lastrowid or 0
    ids: list[int] = []
    for message, shown in zip(chat.messages, pictures, strict=True):
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
                json.dumps(extra | ({"pictures": shown} if shown else {})),
                message.created or now,
                now,
            ),
        )
        ids.append(cursor.lastrowid or 0)
    leaf = None if chat.shown is None else ids[chat.shown]
    db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (leaf, chat_id))
    return chat_id


def export_chat(store: ChatStore, pictures: PictureStore, owner: str, chat_id: int) -> PortableChat:
    """A chat with all its branches. Raises NotFound, for the chats of others too."""
    chat = store.chat(owner, chat_id)
    tree = store.tree(owner, chat_id)
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
                tuple(pictures.data(owner, id_)[0] for id_ in pictures_of(message.extra)),
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
