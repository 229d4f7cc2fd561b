"""What a user can do with characters: write, import, export, begin a chat. Every refusal is a UserError."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

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
from modules.library.trash import Undo
from modules.services.base import Service
from modules.services.charx import is_charx, read_charx
from modules.services.preferences import Preferences


class Characters(Service):
    """Everybody's characters and one's own."""

    def list_view(self) -> list[dict[str, Any]]:
        """Every character with the beginning of what it is; problem: why its file cannot be read."""
        rows = []
        for entry in self.app.characters.all(self.owner):
            row: dict[str, Any] = dataclasses.asdict(entry)
            try:
                character = self.app.characters.read(self.owner, entry.id)
                row |= {
                    "name": character.name,
                    "about": character.filled(character.context, self.called(character) or USER)[:300],
                }
            except UserError as error:
                row |= {"name": entry.id, "about": "", "problem": said(error.message)}
            rows.append(row)
        return rows

    def called(self, character: Character | None) -> str:
        """The name of the person in a chat with a character; empty where nobody has said one."""
        return self.of(Preferences).user_name or (character.user if character else "")

    def name(self, id_: str) -> str:
        """What people call a character; its id where it cannot be read."""
        try:
            return self.app.characters.read(self.owner, id_).name
        except UserError:
            return id_

    @contextmanager
    def _undoable(self, id_: str) -> Iterator[Undo]:
        """Around what changes or deletes a character."""
        files = self.app.characters.files(self.owner, id_)
        with self.app.trash.undoable(self.owner, "character", self.name(id_), files) as undo:
            undo.note = {"id": id_}
            yield undo

    def create(self, values: dict[str, Any]) -> str:
        """Keep a new character; its id."""
        return self._save(values, None)

    def overwrite(self, id_: str, values: dict[str, Any]) -> tuple[str, Undo]:
        """Keep a character in place of what it was: (its id now, the undo). Its chats follow it to a new name."""
        with self._undoable(id_) as undo:
            now = self._save(values, id_)
            if now != id_:
                undo.note["renamed"] = [id_, now]
            undo.made = self.app.characters.files(self.owner, now)
        return now, undo

    def delete(self, id_: str) -> Undo:
        with self._undoable(id_) as undo:
            self.app.characters.delete(self.owner, id_)
        return undo

    def set_picture(self, id_: str, data: bytes) -> Undo:
        """Give a character another picture."""
        with self._undoable(id_) as undo:
            self.app.characters.save(self.owner, self.app.characters.read(self.owner, id_), data, replaces=id_)
            undo.made = self.app.characters.files(self.owner, id_)
        return undo

    def _save(self, values: dict[str, Any], replaces: str | None) -> str:
        fields = {key: value.strip() for key, value in values.items() if isinstance(value, str)}
        fields["name"] = line_of(fields.get("name", ""))
        if not fields["name"]:
            raise UserError("A character needs a name.", param="name")
        before = self.app.characters.read(self.owner, replaces) if replaces is not None else Character(fields["name"])
        own = any(entry.own for entry in self.app.characters.all(self.owner) if entry.id == replaces)
        id_ = self.app.characters.save(self.owner, dataclasses.replace(before, **fields), replaces=replaces)
        if own and replaces is not None and id_ != replaces:
            self.history.chats.replace_setting("character", replaces, id_)
        return id_

    def import_file(self, data: bytes, file: str) -> dict[str, Any]:
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
        id_ = self.app.characters.save(self.owner, read.character, picture)
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

    def export_file(self, id_: str, form: Form | None = None) -> tuple[str, bytes, str]:
        """(name, content, media type) of a character as a file; without a form as it is kept."""
        character = self.app.characters.read(self.owner, id_)
        stem = file_name_for(character.name, "character")
        if form == "png":
            picture = self.app.characters.picture(self.owner, id_)
            return f"{stem}.png", card_picture(character, read_bytes(picture) if picture else None), "image/png"
        suffix, text = kept_form(character) if form is None else ("", written(character, form))
        suffix = suffix or (".yaml" if form == "yaml" else ".json")
        return stem + suffix, text.encode(), "application/yaml" if suffix == ".yaml" else "application/json"

    def view(self, id_: str) -> dict[str, Any]:
        """All that the editor shows of a character; lore: its entries, of which only cards can change anything."""
        character = self.app.characters.read(self.owner, id_)
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

    def begin_chat(self, id_: str, mode: str, nobody: str = USER) -> Chat:
        """A chat with a character, which begins with its greeting; other greetings are versions of it.

        nobody: what the greeting calls a person without a name.
        """
        character = self.app.characters.read(self.owner, id_)
        settings = ChatSettings.read({"mode": mode, "character": id_})
        chat = self.history.chats.create(settings=settings.differences())
        greetings = character.greetings(self.called(character) or nobody)
        said = [self.history.messages.add(chat.id, None, "assistant", text) for text in greetings]
        return self.history.messages.show(said[0].id) if said else chat

    def speakers(self, settings: ChatSettings) -> dict[str, Any] | None:
        """Whose names and picture stand beside the messages of a chat; None where nobody is played."""
        if not settings.character:
            return None
        try:
            character = self.app.characters.read(self.owner, settings.character)
            pictured = self.app.characters.picture(self.owner, settings.character) is not None
        except UserError:  # the file is gone or broken: the chat can still be read, and says so when it is answered
            return {"user": self.called(None), "name": settings.character, "character": None}
        return {
            "user": self.called(character),
            "name": character.spoken,
            "character": settings.character if pictured else None,
        }
