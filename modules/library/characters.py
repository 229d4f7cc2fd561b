"""Characters: files in characters/, and those that people keep for themselves where logins are on."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from modules.errors import Forbidden, NotFound, UserError
from modules.library.cards import LONGEST_NAME, line_of
from modules.library.character import Character
from modules.library.character_files import LARGEST_TEXT, SUFFIXES, has_card, kept_form, portrait, read_character
from modules.library.entries import named, read_bytes
from modules.library.paths import file_name_for, folder_of, path_inside, write_text, written_whole

_WHAT = "character's name"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MOST_OF_A_NAME = 1000


@dataclass(frozen=True)
class ListedCharacter:
    """A row of the list. id: the name of its file, by which it is asked for; own: its owner may change and delete it.

    pictured: it has a picture.
    """

    id: str
    own: bool
    pictured: bool


class CharacterLibrary:
    """The characters in one folder, for everybody; with `personal`, those in a folder of each owner before them.

    Without `personal` everybody may change the shared ones; with it they stay as they are.
    """

    def __init__(self, folder: Path, personal: Path | None = None) -> None:
        self.folder = folder
        self._personal = personal
        self._lock = threading.Lock()  # two files of one name that come at once get two ids

    def all(self, owner: str) -> list[ListedCharacter]:
        """What `owner` can choose, by name."""
        found: dict[str, ListedCharacter] = {}
        for folder in self._folders(owner):
            own = folder == self._own(owner)
            for path in _files(folder):
                found.setdefault(path.stem, ListedCharacter(path.stem, own, _picture_beside(path) is not None))
        return sorted(found.values(), key=lambda entry: entry.id.lower())

    def read(self, owner: str, id_: str) -> Character:
        """Raises NotFound, and UserError where the file cannot be understood."""
        return _read(self._existing(owner, id_))

    def named(self, owner: str, name: str) -> Character:
        """The character with an id, or else the first with that name. Raises NotFound, and UserError like `read`."""
        try:
            return self.read(owner, name)
        except NotFound:
            files = (path for folder in self._folders(owner) for path in _files(folder))
            path = next((path for path in files if _name_in(path) == name), None)
            if path is None:
                raise
            return _read(path)

    def file(self, owner: str, id_: str) -> bytes:
        """What is kept of a character, whether it can be understood or not. Raises NotFound, and UserError where it cannot be read."""
        return read_bytes(self._existing(owner, id_))

    def picture(self, owner: str, id_: str) -> Path | None:
        """The file of a character's picture. Raises NotFound where there is no such character."""
        return _picture_beside(self._existing(owner, id_))

    def files(self, owner: str, id_: str) -> list[Path]:
        """What of a character `owner` may change: its file and its pictures; nothing where there is no such character."""
        try:
            path = self._existing(owner, id_)
        except NotFound:
            return []
        return _all_of(path) if path.parent == self._own(owner) else []

    def save(
        self,
        owner: str,
        character: Character,
        picture: bytes | None = None,
        *,
        replaces: str | None = None,
        wanted: str | None = None,
    ) -> str:
        """Write a character and return its id; a picture that is not given stays.

        The id is its name as far as a file can have it, or `wanted`, with a number where that is taken: several may have one name.
        replaces: the id it had before, None for a new one; it keeps that while it keeps its name. Raises UserError.
        """
        with self._lock:
            return self._save(owner, character, picture, replaces, wanted)

    def _save(self, owner: str, character: Character, picture: bytes | None, replaces: str | None, wanted: str | None) -> str:
        character = replace(character, name=line_of(character.name))
        if not character.name:
            raise UserError("A character needs a name.", param="name")
        if len(character.name) > LONGEST_NAME:
            raise UserError(f"The name is too long: {LONGEST_NAME} letters at most.", param="name")
        folder = self._own(owner)
        shown = self._existing(owner, replaces) if replaces is not None else None
        stays = shown is not None and self._find(shown.parent, shown.stem) and _name_in(shown) == character.name
        id_ = shown.stem if shown and stays else self._free(owner, wanted or character.name, shown.stem if shown else None)
        before = shown if shown and shown.parent == folder else None
        kept = _picture_beside(shown) if shown else None
        image = portrait(picture) if picture is not None else _clean(kept) if kept else None
        suffix, text = kept_form(character)
        target = path_inside(folder, id_, suffix, _WHAT)
        if len(text.encode()) > LARGEST_TEXT:
            raise UserError(f"The character is too long: {LARGEST_TEXT // 1024**2} MB at most. Shorten its texts.")
        write_text(target, text)
        if image is not None:
            with written_whole(path_inside(folder, id_, ".png", _WHAT)) as draft:
                draft.write_bytes(image)
        if before is not None:
            self._remove(before, keep={target, target.with_name(f"{id_}.png")})
        return id_

    def delete(self, owner: str, name: str) -> None:
        """Raises NotFound, and Forbidden for a character that belongs to everybody."""
        folder = self._own(owner)
        path = self._existing(owner, name)
        if path.parent != folder:
            raise Forbidden(f"{name} belongs to everybody who uses this server, and cannot be deleted here.")
        self._remove(path)

    def _folders(self, owner: str) -> Iterator[Path]:
        if self._personal is not None:
            yield self._own(owner)
        yield self.folder

    def _own(self, owner: str) -> Path:
        """Where `owner` may write."""
        return self.folder if self._personal is None else folder_of(self._personal, owner)

    def _find(self, folder: Path, id_: str) -> Path | None:
        try:
            paths = [path_inside(folder, id_, suffix, _WHAT) for suffix in SUFFIXES]
        except UserError:  # no file has such a name, though a character may
            return None
        return next((path for path in paths if _is_character(path)), None)

    def _existing(self, owner: str, id_: str) -> Path:
        for folder in self._folders(owner):
            if path := self._find(folder, id_):
                return path
        for folder in self._folders(owner):  # people may give a file a name that this program gives none
            if path := next((path for path in _files(folder) if path.stem == id_), None):
                return path
        have = ", ".join(entry.id for entry in self.all(owner))
        raise NotFound(
            f"There is no character called {id_}. {f'There are: {have}.' if have else ''}".strip(), param="character"
        )

    def _free(self, owner: str, name: str, now: str | None) -> str:
        """An id for a character of a new name, who has the id `now`."""
        taken = {entry.id.lower() for entry in self.all(owner)}
        wanted = file_name_for(name, "character")
        if now is not None and wanted.lower() == now.lower():
            return now
        numbers = (wanted if number == 1 else f"{wanted} {number}" for number in range(1, MOST_OF_A_NAME))
        found = next((id_ for id_ in numbers if id_.lower() not in taken), None)
        if found is None:
            raise UserError(f"There are too many characters called {name}.", param="name")
        return found

    def _remove(self, path: Path, keep: Collection[Path] = ()) -> None:
        for file in _all_of(path):
            if file not in keep:
                file.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """The files that describe characters; of several with one name the first suffix wins."""
    found: dict[str, Path] = {}
    for path in sorted(named(folder, *SUFFIXES), key=lambda path: SUFFIXES.index(path.suffix)):
        if path.stem not in found and _is_character(path):
            found[path.stem] = path
    return list(found.values())


def _all_of(path: Path) -> list[Path]:
    """What there is of the character in a file: that, and its pictures."""
    files = (path.with_name(path.stem + suffix) for suffix in dict.fromkeys((*SUFFIXES, *_PICTURES)))
    return [file for file in files if os.path.islink(file) or (os.path.lexists(file) and not os.path.isdir(file))]


def _is_character(path: Path) -> bool:
    """Whether a file describes a character: of pictures only those with a card. What cannot be read may, and says so when it is."""
    if not os.path.lexists(path) or os.path.isdir(path):
        return False
    try:
        return path.suffix not in _PICTURES or has_card(path)
    except (UserError, OSError):
        return True


def _read(path: Path) -> Character:
    """Raises UserError."""
    return read_character(read_bytes(path), path.name)


def _name_in(path: Path) -> str | None:
    try:
        return _read(path).name
    except UserError:
        return None


def _picture_beside(path: Path) -> Path | None:
    return next((file for suffix in _PICTURES if os.path.isfile(file := path.with_name(path.stem + suffix))), None)


def _clean(path: Path) -> bytes | None:
    """A picture that somebody put beside a character; None where it is none."""
    try:
        return portrait(read_bytes(path))
    except UserError:
        return None
