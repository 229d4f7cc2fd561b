"""What a user can do with characters, one function each. Every refusal is a UserError."""

from __future__ import annotations

import dataclasses
from pathlib import PurePath
from typing import Any

from modules.app import App
from modules.chats.conversation import ChatSettings
from modules.chats.records import Chat
from modules.errors import UserError
from modules.i18n.sentences import said
from modules.library.card_images import is_picture
from modules.library.cards import LeftOut, line_of
from modules.library.character import Character
from modules.library.character_files import Form, card_picture, kept_form, portrait, read_file, written
from modules.library.decorators import read_decorators
from modules.library.entries import read_bytes
from modules.library.modes import USER
from modules.library.paths import file_name_for
from modules.services.charx import is_charx, read_charx
from modules.services.preferences import user_name


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
    fields["name"] = line_of(fields.get("name", ""))
    if not fields["name"]:
        raise UserError("A character needs a name.", param="name")
    before = app.characters.read(owner, replaces) if replaces is not None else Character(fields["name"])
    own = any(entry.own for entry in app.characters.all(owner) if entry.id == replaces)
    id_ = app.characters.save(owner, dataclasses.replace(before, **fields), replaces=replaces)
    if own and replaces is not None and id_ != replaces:
        app.store.replace_setting(owner, "character", replaces, id_)
    return id_


def import_file(app: App, owner: str, data: bytes, file: str) -> dict[str, Any]:
    """Keep the character of a file of any known form, with its picture if it has one: what came in, and what is left out.

    It keeps its name, also where another has that name already.
    """
    name = PurePath(file).name[:100] or "file"
    if is_charx(data):
        read, picture = read_charx(data, name)
    else:
        read, picture = read_file(data, name), data if is_picture(data) else None
    left_out = list(read.left_out)
    try:
        picture = portrait(picture) if picture is not None else None
    except UserError:
        picture = None
        left_out.append(LeftOut("picture"))
    id_ = app.characters.save(owner, read.character, picture)
    entries = read.character.book.entries if read.character.book else ()
    return {
        "id": id_,
        "name": read.character.name,
        "pictured": picture is not None,
        "greetings": len(read.character.greetings(USER)),
        "lore": len(entries),
        "constant": sum(entry.constant and entry.enabled for entry in entries),
        "left_out": [dataclasses.asdict(one) for one in left_out],
    }


def export_file(app: App, owner: str, id_: str, form: Form | None = None) -> tuple[str, bytes, str]:
    """(name, content, media type) of a character as a file; without a form as it is kept."""
    character = app.characters.read(owner, id_)
    stem = file_name_for(character.name, "character")
    if form == "png":
        picture = app.characters.picture(owner, id_)
        return f"{stem}.png", card_picture(character, read_bytes(picture) if picture else None), "image/png"
    suffix, text = kept_form(character) if form is None else ("", written(character, form))
    suffix = suffix or (".yaml" if form == "yaml" else ".json")
    return stem + suffix, text.encode(), "application/yaml" if suffix == ".yaml" else "application/json"


def view(app: App, owner: str, id_: str) -> dict[str, Any]:
    """All that the editor shows of a character; lore: its entries, of which only cards can change anything."""
    character = app.characters.read(owner, id_)
    entries = character.book.entries if character.book else ()
    fields = dataclasses.asdict(dataclasses.replace(character, book=None, others={}))
    notes = character.others.get("creator_notes")
    return {
        **{key: value for key, value in fields.items() if key not in ("book", "others")},
        "notes": notes if isinstance(notes, str) else "",
        "lore": [
            {
                "title": entry.title,
                "keys": list(entry.keys),
                "constant": entry.constant,
                "enabled": entry.enabled,
                "text": read_decorators(entry.content).text,
            }
            for entry in entries
        ],
    }


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
        "name": character.spoken,
        "character": settings.character if pictured else None,
    }
