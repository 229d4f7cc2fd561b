"""All that one user has, as one zip file, and back: chats with their trees, characters, presets, prompts, pages, settings."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, get_args

import yaml

from modules.chats import incoming, transfer
from modules.chats.archive import Archive
from modules.chats.notebook import PageName
from modules.errors import NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.i18n.sentences import said
from modules.library import character_files, presets
from modules.library.character import Character
from modules.library.character_files import kept_form, portrait, read_character
from modules.library.entries import read_bytes
from modules.services.base import Service
from modules.services.preferences import Preferences

LARGEST = 500 * 1024**2
"""Bytes, packed and unpacked."""
MOST_FILES = 20_000
_SETTINGS = "settings.json"
_LEFT_OUT = "left-out.txt"
"""A sentence for each file that cannot be read, where there are some."""


@dataclass
class Imported:
    """How much of each kind came in, and a sentence for each file that could not be read."""

    chats: int = 0
    characters: int = 0
    presets: int = 0
    prompts: int = 0
    problems: list[str] = field(default_factory=list)


Taken = tuple[int, list[str]]
"""How many of a file came in, and a sentence for each that did not."""


class Backup(Service):
    """Export and import of all that a user has."""

    def export(self) -> bytes:
        """The zip file."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in self._files():
                archive.writestr(name, data)
        return packed.getvalue()

    def _files(self) -> Iterator[tuple[str, str | bytes]]:
        yield _SETTINGS, json.dumps(self._settings(), ensure_ascii=False, indent=1)
        left_out = []
        for read in self._kept_files():
            try:
                yield read()
            except UserError as error:
                left_out.append(said(error.message))
        if left_out:
            yield _LEFT_OUT, "\n".join(left_out) + "\n"

    def _kept_files(self) -> Iterator[Callable[[], tuple[str, str | bytes]]]:
        """What makes each file; it raises UserError where what is kept cannot be read."""
        presets, prompts = self.app.presets.of(self.owner), self.app.prompts.of(self.owner)
        for chat in self.history.chats.page(limit=MOST_FILES):
            yield lambda id_=chat.id: self._chat_file(id_)
        for name in presets.names():
            yield lambda name=name: (f"presets/{name}.yaml", self._preset_file(name))
        for name in prompts.names():
            yield lambda name=name: (f"prompts/{name}.txt", prompts.read(name))
        for entry in self.app.characters.all(self.owner):
            yield lambda id_=entry.id: self._character_file(id_)
            if picture := self.app.characters.picture(self.owner, entry.id):
                yield lambda id_=entry.id, picture=picture: (f"characters/{id_}.png", read_bytes(picture))

    def _chat_file(self, id_: int) -> tuple[str, str]:
        name, text = transfer.export_file(transfer.export_chat(self.history, id_), "textloom")
        return f"chats/{id_}-{name}", text

    def _preset_file(self, name: str) -> str | bytes:
        try:
            values = self.app.presets.of(self.owner).read(name).model_dump(mode="json", exclude_defaults=True)
        except UserError:  # what cannot be understood goes out as it is
            return self.app.presets.of(self.owner).kept(name)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def _character_file(self, id_: str) -> tuple[str, str | bytes]:
        try:
            suffix, text = kept_form(self.app.characters.read(self.owner, id_))
        except UserError:  # as above
            suffix, text = ".yaml", self.app.characters.file(self.owner, id_)
        return f"characters/{id_}{suffix}", text

    def _settings(self) -> dict[str, Any]:
        preferences = self.of(Preferences)
        sampling, preset = preferences.sampling
        pages = {name: self.app.notebooks.for_owner(self.owner).read(name) for name in get_args(PageName)}
        return {
            "sampling": sampling.model_dump(mode="json", exclude_defaults=True),
            "preset": preset,
            "page": self.history.preferences.get("page", {}),
            "name": preferences.user_name,
            "pages": {name: {"prompt": page.prompt, "text": page.text} for name, page in pages.items()},
        }

    def read(self, file: BinaryIO) -> dict[str, Any]:
        """Take in what `export` made, beside what is there: nothing is replaced but the settings. Raises UserError."""
        archive = Archive(file, most_files=MOST_FILES, largest=LARGEST)
        done = Imported()
        for filename in archive:
            path = PurePosixPath(filename)
            kind = _KINDS.get(path.parent.name)
            if kind is None or path.suffix not in kind.suffixes:
                continue
            try:
                data = archive.read(filename, kind.largest)
                made, problems = kind.take(self, path.stem, data, archive)
                setattr(done, path.parent.name, getattr(done, path.parent.name) + made)
                done.problems += [f"{filename}: {problem}" for problem in problems]
            except UserError as error:
                done.problems.append(f"{filename}: {said(error.message)}")
            except UnicodeDecodeError:
                done.problems.append(said(f"{filename}: this file is damaged."))
        if _SETTINGS in archive:
            try:
                self._restore_settings(json.loads(archive.read(_SETTINGS, _LARGEST_SETTINGS)))
            except UserError as error:
                done.problems.append(f"{_SETTINGS}: {said(error.message)}")
            except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
                done.problems.append(said(f"{_SETTINGS}: this file is damaged."))
        if not any((done.chats, done.characters, done.presets, done.prompts)) and _SETTINGS not in archive:
            raise UserError("There is nothing of Textloom in this file. Choose one that was exported on the Session tab.")
        return asdict(done)

    def _preset(self, name: str, data: bytes, archive: Archive) -> Taken:
        sampling = SamplingParams.read(presets.read_preset(data, f"{name}.yaml"))
        free = _free(name, _compare(lambda kept: self.app.presets.of(self.owner).read(kept), sampling))
        if free:
            self.app.presets.of(self.owner).save(free, sampling)
        return int(free is not None), []

    def _prompt(self, name: str, data: bytes, archive: Archive) -> Taken:
        text = data.decode("utf-8-sig")
        free = _free(name, _compare(lambda kept: self.app.prompts.of(self.owner).read(kept), text))
        if free:
            self.app.prompts.of(self.owner).save(free, text)
        return int(free is not None), []

    def _character(self, name: str, data: bytes, archive: Archive) -> Taken:
        character = read_character(data, f"{name}.yaml")
        if any(self._kept(entry.id) == character for entry in self.app.characters.all(self.owner)):
            return 0, []
        picture = next((path for path in archive if path.endswith(f"characters/{name}.png")), None)
        try:
            image = portrait(archive.read(picture, character_files.LARGEST_FILE)) if picture else None
        except UserError:  # without its picture rather than not at all
            image = None
        self.app.characters.save(self.owner, character, image, wanted=name)
        return 1, []

    def _kept(self, id_: str) -> Character | None:
        try:
            return self.app.characters.read(self.owner, id_)
        except UserError:  # a file that cannot be read is like none that comes in
            return None

    def _chats(self, name: str, data: bytes, archive: Archive) -> Taken:
        read = incoming.read_file(data)
        made = transfer.import_chats(self.history, read.chats)
        return len(made), [f"{left_out.number} {left_out.title} — {said(left_out.why.text)}" for left_out in read.left_out]

    def _restore_settings(self, kept: dict[str, Any]) -> None:
        preferences = self.of(Preferences)
        preferences.set_sampling(SamplingParams.read(kept.get("sampling", {})), kept.get("preset"))
        preferences.set_page(kept.get("page", {}))
        preferences.set_user_name(str(kept.get("name", "")))
        notebook = self.app.notebooks.for_owner(self.owner)
        for name, texts in kept.get("pages", {}).items():
            page = notebook.read(name)
            if not (page.prompt or page.text):  # what is being written there stays
                notebook.change(name, page.revision, prompt=str(texts["prompt"]), text=str(texts["text"]))


def _free(name: str, same: Callable[[str], bool | None]) -> str | None:
    """`name`, or one beside it that is free; None where what it names is the same already.

    same: whether what is kept under a name is what comes in; None where the name is free.
    """
    for number in range(1, 1000):
        candidate = name if number == 1 else f"{name} ({number})"
        found = same(candidate)
        if found is None:
            return candidate
        if found:
            return None
    raise UserError(f"There are too many of the name {name}.")


def _compare(read: Callable[[str], Any], value: Any) -> Callable[[str], bool | None]:
    def same(name: str) -> bool | None:
        try:
            return read(name) == value
        except NotFound:
            return None

    return same


@dataclass(frozen=True)
class _Kind:
    """A folder of the zip file: which files in it are read, by their ends, how large one may be, and what takes it in."""

    suffixes: tuple[str, ...]
    largest: int
    take: Callable[[Backup, str, bytes, Archive], Taken]


_KINDS = {
    "presets": _Kind((".yaml",), presets.LARGEST_FILE, Backup._preset),
    "prompts": _Kind((".txt",), 8 * 1024**2, Backup._prompt),
    "characters": _Kind((".yaml", ".json"), character_files.LARGEST_TEXT, Backup._character),
    "chats": _Kind((".json",), incoming.LARGEST_FILE, Backup._chats),
}
_LARGEST_SETTINGS = 64 * 1024**2
"""Bytes; the texts of the pages are in it."""
