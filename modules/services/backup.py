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

from modules.app import App
from modules.chats import incoming, transfer
from modules.chats.archive import Archive
from modules.chats.notebook import SheetName
from modules.errors import NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.i18n.sentences import said
from modules.library import character_files, presets
from modules.library.character import Character
from modules.library.character_files import kept_form, portrait, read_character
from modules.library.entries import read_bytes
from modules.services import preferences

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


def export(app: App, owner: str) -> bytes:
    """The zip file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _files(app, owner):
            archive.writestr(name, data)
    return packed.getvalue()


def _files(app: App, owner: str) -> Iterator[tuple[str, str | bytes]]:
    yield _SETTINGS, json.dumps(_settings(app, owner), ensure_ascii=False, indent=1)
    left_out = []
    for read in _kept_files(app, owner):
        try:
            yield read()
        except UserError as error:
            left_out.append(said(error.message))
    if left_out:
        yield _LEFT_OUT, "\n".join(left_out) + "\n"


def _kept_files(app: App, owner: str) -> Iterator[Callable[[], tuple[str, str | bytes]]]:
    """What makes each file; it raises UserError where what is kept cannot be read."""
    presets, prompts = app.presets.of(owner), app.prompts.of(owner)
    for chat in app.store.chats(owner, limit=MOST_FILES):
        yield lambda id_=chat.id: _chat_file(app, owner, id_)
    for name in presets.names():
        yield lambda name=name: (f"presets/{name}.yaml", _preset_file(app, owner, name))
    for name in prompts.names():
        yield lambda name=name: (f"prompts/{name}.txt", prompts.read(name))
    for entry in app.characters.all(owner):
        yield lambda id_=entry.id: _character_file(app, owner, id_)
        if picture := app.characters.picture(owner, entry.id):
            yield lambda id_=entry.id, picture=picture: (f"characters/{id_}.png", read_bytes(picture))


def _chat_file(app: App, owner: str, id_: int) -> tuple[str, str]:
    name, text = transfer.export_file(transfer.export_chat(app.store, app.pictures, owner, id_), "textloom")
    return f"chats/{id_}-{name}", text


def _preset_file(app: App, owner: str, name: str) -> str | bytes:
    try:
        values = app.presets.of(owner).read(name).model_dump(mode="json", exclude_defaults=True)
    except UserError:  # what cannot be understood goes out as it is
        return app.presets.of(owner).kept(name)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _character_file(app: App, owner: str, id_: str) -> tuple[str, str | bytes]:
    try:
        suffix, text = kept_form(app.characters.read(owner, id_))
    except UserError:  # as above
        suffix, text = ".yaml", app.characters.file(owner, id_)
    return f"characters/{id_}{suffix}", text


def _settings(app: App, owner: str) -> dict[str, Any]:
    sampling, preset = preferences.sampling_of(app, owner)
    sheets = {name: app.sheets.read(owner, name) for name in get_args(SheetName)}
    return {
        "sampling": sampling.model_dump(mode="json", exclude_defaults=True),
        "preset": preset,
        "page": app.store.preference(owner, "page", {}),
        "name": preferences.user_name(app, owner),
        "pages": {name: {"prompt": sheet.prompt, "text": sheet.text} for name, sheet in sheets.items()},
    }


def read(app: App, owner: str, file: BinaryIO) -> dict[str, Any]:
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
            made, problems = kind.take(app, owner, path.stem, data, archive)
            setattr(done, path.parent.name, getattr(done, path.parent.name) + made)
            done.problems += [f"{filename}: {problem}" for problem in problems]
        except UserError as error:
            done.problems.append(f"{filename}: {said(error.message)}")
        except UnicodeDecodeError:
            done.problems.append(said(f"{filename}: this file is damaged."))
    if _SETTINGS in archive:
        try:
            _restore_settings(app, owner, json.loads(archive.read(_SETTINGS, _LARGEST_SETTINGS)))
        except UserError as error:
            done.problems.append(f"{_SETTINGS}: {said(error.message)}")
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            done.problems.append(said(f"{_SETTINGS}: this file is damaged."))
    if not any((done.chats, done.characters, done.presets, done.prompts)) and _SETTINGS not in archive:
        raise UserError("There is nothing of Textloom in this file. Choose one that was exported on the Session tab.")
    return asdict(done)


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


Taken = tuple[int, list[str]]
"""How many of a file came in, and a sentence for each that did not."""


def _preset(app: App, owner: str, name: str, data: bytes, archive: Archive) -> Taken:
    sampling = SamplingParams.read(presets.read_preset(data, f"{name}.yaml"))
    free = _free(name, _compare(lambda kept: app.presets.of(owner).read(kept), sampling))
    if free:
        app.presets.of(owner).save(free, sampling)
    return int(free is not None), []


def _prompt(app: App, owner: str, name: str, data: bytes, archive: Archive) -> Taken:
    text = data.decode("utf-8-sig")
    free = _free(name, _compare(lambda kept: app.prompts.of(owner).read(kept), text))
    if free:
        app.prompts.of(owner).save(free, text)
    return int(free is not None), []


def _character(app: App, owner: str, name: str, data: bytes, archive: Archive) -> Taken:
    character = read_character(data, f"{name}.yaml")
    if any(_kept(app, owner, entry.id) == character for entry in app.characters.all(owner)):
        return 0, []
    picture = next((path for path in archive if path.endswith(f"characters/{name}.png")), None)
    try:
        image = portrait(archive.read(picture, character_files.LARGEST_FILE)) if picture else None
    except UserError:  # without its picture rather than not at all
        image = None
    app.characters.save(owner, character, image, wanted=name)
    return 1, []


def _kept(app: App, owner: str, id_: str) -> Character | None:
    try:
        return app.characters.read(owner, id_)
    except UserError:  # a file that cannot be read is like none that comes in
        return None


def _chats(app: App, owner: str, name: str, data: bytes, archive: Archive) -> Taken:
    read = incoming.read_file(data)
    made = transfer.import_chats(app.store, app.pictures, owner, read.chats)
    return len(made), [f"{left_out.number} {left_out.title} — {said(left_out.why.text)}" for left_out in read.left_out]


@dataclass(frozen=True)
class _Kind:
    """A folder of the zip file: which files in it are read, by their ends, how large one may be, and what takes it in."""

    suffixes: tuple[str, ...]
    largest: int
    take: Callable[[App, str, str, bytes, Archive], Taken]


_KINDS = {
    "presets": _Kind((".yaml",), presets.LARGEST_FILE, _preset),
    "prompts": _Kind((".txt",), 8 * 1024**2, _prompt),
    "characters": _Kind((".yaml", ".json"), character_files.LARGEST_TEXT, _character),
    "chats": _Kind((".json",), incoming.LARGEST_FILE, _chats),
}
_LARGEST_SETTINGS = 64 * 1024**2
"""Bytes; the texts of the pages are in it."""


def _restore_settings(app: App, owner: str, kept: dict[str, Any]) -> None:
    preferences.set_sampling(app, owner, SamplingParams.read(kept.get("sampling", {})), kept.get("preset"))
    preferences.set_page(app, owner, kept.get("page", {}))
    preferences.set_user_name(app, owner, str(kept.get("name", "")))
    for name, texts in kept.get("pages", {}).items():
        sheet = app.sheets.read(owner, name)
        if not (sheet.prompt or sheet.text):  # what is being written there stays
            app.sheets.change(owner, name, sheet.revision, prompt=str(texts["prompt"]), text=str(texts["text"]))
