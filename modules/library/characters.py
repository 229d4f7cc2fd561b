"""Characters: files in characters/, and those that people keep for themselves where logins are on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from modules.errors import Conflict, Forbidden, NotFound, UserError
from modules.library.character import Character
from modules.library.character_files import LARGEST_TEXT, SUFFIXES, has_card, portrait, read_character, written
from modules.library.places import folder_of, path_inside, safe_name, write_text, written_whole

_WHAT = "character's name"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LONGEST_NAME = 80


@dataclass(frozen=True)
class ListedCharacter:
    """A row of the list. id: what it is called by; own: its owner may change and delete it; pictured: it has a picture."""

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

    def all(self, owner: str) -> list[ListedCharacter]:
        """What `owner` can choose, by name."""
        found: dict[str, ListedCharacter] = {}
        for folder in self._folders(owner):
            own = folder == self._own(owner)
            for path in _files(folder):
                found.setdefault(path.stem, ListedCharacter(path.stem, own, _picture_beside(path) is not None))
        return sorted(found.values(), key=lambda entry: entry.id.lower())

    def read(self, owner: str, name: str) -> Character:
        """Raises NotFound, and UserError where the file cannot be understood."""
        path = self._existing(owner, name)
        return read_character(path.read_bytes(), path.name)

    def picture(self, owner: str, name: str) -> Path | None:
        """The file of a character's picture. Raises NotFound where there is no such character."""
        return _picture_beside(self._existing(owner, name))

    def files(self, owner: str, name: str) -> list[Path]:
        """What of a character `owner` may change: its file and its pictures."""
        found = (path_inside(self._own(owner), name, suffix, _WHAT) for suffix in dict.fromkeys((*SUFFIXES, *_PICTURES)))
        return [path for path in found if path.is_file()]

    def save(self, owner: str, character: Character, picture: bytes | None = None, *, replaces: str | None = None) -> str:
        """Write a character under its own name, which is returned; a picture that is not given stays.

        replaces: the name it had before, None for a new one. Raises UserError, and Conflict where the name is taken.
        """
        id_ = safe_name(character.name, _WHAT)
        if len(id_) > LONGEST_NAME:
            raise UserError(f"The name is too long: {LONGEST_NAME} letters at most.", param="name")
        folder = self._own(owner)
        if replaces != id_ and any(path.stem.lower() == id_.lower() for path in _files(folder)):
            raise Conflict(f"There is a character called {id_} already. Take another name, or edit that one.", param="name")
        before = self._find(folder, replaces) if replaces is not None else None
        kept = _picture_beside(before) if before else self.picture(owner, replaces) if replaces is not None else None
        image = portrait(picture) if picture is not None else kept.read_bytes() if kept else None
        target = path_inside(folder, id_, ".yaml", _WHAT)
        text = written(character)
        if len(text.encode()) > LARGEST_TEXT:
            raise UserError(f"The character is too long: {LARGEST_TEXT // 1024**2} MB at most. Shorten its texts.")
        write_text(target, text)
        if image is not None:
            with written_whole(path_inside(folder, id_, ".png", _WHAT)) as draft:
                draft.write_bytes(image)
        if before is not None:
            self._remove(folder, before, keep={target, target.with_suffix(".png")})
        return id_

    def delete(self, owner: str, name: str) -> None:
        """Raises NotFound, and Forbidden for a character that belongs to everybody."""
        folder = self._own(owner)
        path = self._find(folder, name)
        if path is None:
            self._existing(owner, name)
            raise Forbidden(f"{name} belongs to everybody who uses this server, and cannot be deleted here.")
        self._remove(folder, path)

    def _folders(self, owner: str) -> Iterator[Path]:
        if self._personal is not None:
            yield self._own(owner)
        yield self.folder

    def _own(self, owner: str) -> Path:
        """Where `owner` may write."""
        return self.folder if self._personal is None else folder_of(self._personal, owner)

    def _find(self, folder: Path, name: str) -> Path | None:
        for suffix in SUFFIXES:
            path = path_inside(folder, name, suffix, _WHAT)
            if path.is_file() and (suffix != ".png" or has_card(path)):
                return path
        return None

    def _existing(self, owner: str, name: str) -> Path:
        for folder in self._folders(owner):
            if path := self._find(folder, name):
                return path
        have = ", ".join(entry.id for entry in self.all(owner))
        raise NotFound(
            f"There is no character called {name}. {f'There are: {have}.' if have else ''}".strip(), param="character"
        )

    def _remove(self, folder: Path, path: Path, keep: Collection[Path] = ()) -> None:
        for suffix in {*SUFFIXES, *_PICTURES}:
            file = path_inside(folder, path.stem, suffix, _WHAT)
            if file not in keep:
                file.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """The files that describe characters; of several with one name the first suffix wins."""
    if not folder.is_dir():
        return []
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(folder.glob(f"*{suffix}")):
            if not path.name.startswith(".") and path.stem not in found and (suffix != ".png" or has_card(path)):
                found[path.stem] = path
    return list(found.values())


def _picture_beside(path: Path) -> Path | None:
    return next((file for suffix in _PICTURES if (file := path.with_suffix(suffix)).is_file()), None)
