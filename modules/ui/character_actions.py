"""What a user can do with characters, one function each. Every refusal is a UserError."""

from __future__ import annotations

import dataclasses
from pathlib import PurePath
from typing import Any

from modules.app import App
from modules.chats.conversation import ChatSettings
from modules.chats.records import Chat
from modules.errors import Conflict, UserError
from modules.library.character import Character
from modules.library.character_files import is_picture, read_character
from modules.library.modes import USER
from modules.ui.preferences import user_name
from modules.ui.sentences import said


def list_view(app: App, owner: str) -> list[dict[str, Any]]:
    """Every character with the beginning of what it is; problem: why its file cannot be read."""
    rows = []
    for entry in app.characters.all(owner):
        row: dict[str, Any] = dataclasses.asdict(entry)
        try:
            character = app.characters.read(owner, entry.id)
            row |= {
                "name": character.name,
                "about": character.filled(character.context, called(app, owner, character) or USER)[:300],
            }
        except UserError as error:
            row |= {"name": entry.id, "about": "", "problem": said(error.message)}
        rows.append(row)
    return rows


def called(app: App, owner: str, character: Character | None) -> str:
    """The name of the person in a chat with a character; empty where nobody has said one."""
    return user_name(app, owner) or (character.user if character else "")


def save(app: App, owner: str, values: dict[str, Any], replaces: str | None) -> str:
    """Keep a character that was written on the page; its id. Its chats follow it to a new name."""
    fields = {key: value.strip() for key, value in values.items() if isinstance(value, str)}
    fields["name"] = " ".join(fields.get("name", "").split())
    if not fields["name"]:
        raise UserError("A character needs a name.", param="name")
    before = app.characters.read(owner, replaces) if replaces is not None else Character(fields["name"])
    own = any(entry.own for entry in app.characters.all(owner) if entry.id == replaces)
    id_ = app.characters.save(owner, dataclasses.replace(before, **fields), replaces=replaces)
    if own and replaces is not None and id_ != replaces:
        app.store.replace_setting(owner, "character", replaces, id_)
    return id_


def import_file(app: App, owner: str, data: bytes, file: str) -> str:
    """Keep the character of a file of any known form, with its picture if it has one; its id. A name that is taken gets a number."""
    name = PurePath(file).name[:100] or "file"
    character = read_character(data, name)
    picture = data if is_picture(data) else None
    wanted = character.name
    for number in range(2, 100):
        try:
            return app.characters.save(owner, character, picture)
        except Conflict:
            character = dataclasses.replace(character, name=f"{wanted} {number}")
    raise Conflict(f"There are too many characters called {wanted}.")


def set_picture(app: App, owner: str, id_: str, data: bytes) -> None:
    """Give a character another picture."""
    app.characters.save(owner, app.characters.read(owner, id_), data, replaces=id_)


def begin_chat(app: App, owner: str, id_: str, mode: str, nobody: str = USER) -> Chat:
    """A chat with a character, which begins with its greeting; other greetings are versions of it.

    nobody: what the greeting calls a person without a name.
    """
    character = app.characters.read(owner, id_)
    settings = ChatSettings.read({"mode": mode, "character": id_})
    chat = app.store.create_chat(owner, settings=settings.differences())
    greetings = character.greetings(called(app, owner, character) or nobody)
    said = [app.store.add(owner, chat.id, None, "assistant", text) for text in greetings]
    return app.store.show(owner, said[0].id) if said else chat


def speakers_view(app: App, owner: str, settings: ChatSettings) -> dict[str, Any] | None:
    """Whose names and picture stand beside the messages of a chat; None where nobody is played."""
    if not settings.character:
        return None
    try:
        character = app.characters.read(owner, settings.character)
        pictured = app.characters.picture(owner, settings.character) is not None
    except UserError:  # the file is gone or broken: the chat can still be read, and says so when it is answered
        return {"user": called(app, owner, None), "name": settings.character, "character": None}
    return {
        "user": called(app, owner, character),
        "name": character.name,
        "character": settings.character if pictured else None,
    }
