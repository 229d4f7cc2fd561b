"""All that one user has, as one zip file, and back: chats with their trees, characters, presets, prompts, pages, settings."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, get_args

import yaml

from modules.app import App
from modules.chats import transfer
from modules.chats.sheets import SheetName
from modules.errors import NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.library.character_files import read_character, written
from modules.ui import preferences

LARGEST = 500 * 1024**2
"""Bytes, packed and unpacked."""
MOST_FILES = 20_000
_SETTINGS = "settings.json"


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
    for entry in app.store.chats(owner, limit=MOST_FILES):
        name, text = transfer.export_file(transfer.export_chat(app.store, app.pictures, owner, entry.id), "textloom")
        yield f"chats/{entry.id}-{name}", text
    for name in app.presets.of(owner).names():
        values = app.presets.of(owner).read(name).model_dump(mode="json", exclude_defaults=True)
        yield f"presets/{name}.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    for name in app.prompts.of(owner).names():
        yield f"prompts/{name}.txt", app.prompts.of(owner).read(name)
    for character in app.characters.all(owner):
        yield f"characters/{character.id}.yaml", written(app.characters.read(owner, character.id))
        if picture := app.characters.picture(owner, character.id):
            yield f"characters/{character.id}.png", picture.read_bytes()


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


def read(app: App, owner: str, data: bytes) -> dict[str, Any]:
    """Take in what `export` made, beside what is there: nothing is replaced but the settings. Raises UserError."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        raise UserError("This is no zip file. Choose one that was exported on the Session tab.") from None
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MOST_FILES or sum(entry.file_size for entry in entries) > LARGEST:
        raise UserError(f"The file holds too much: {MOST_FILES} files and {LARGEST // 1024**2} MB are the most.")
    contents = {entry.filename: entry for entry in entries}
    done = Imported()
    readers: dict[str, Callable[[str, bytes], int]] = {
        "presets": lambda name, text: _preset(app, owner, name, text),
        "prompts": lambda name, text: _prompt(app, owner, name, text.decode("utf-8-sig")),
        "characters": lambda name, text: _character(app, owner, name, text, archive, contents),
        "chats": lambda name, text: len(transfer.import_chats(app.store, app.pictures, owner, transfer.read_file(text))),
    }
    suffixes = {"presets": ".yaml", "prompts": ".txt", "characters": ".yaml", "chats": ".json"}
    for filename, entry in contents.items():
        path = PurePosixPath(filename)
        kind = path.parent.name
        if suffixes.get(kind) != path.suffix:
            continue
        try:
            setattr(done, kind, getattr(done, kind) + readers[kind](path.stem, archive.read(entry)))
        except UserError as error:
            done.problems.append(f"{filename}: {error.message}")
        except (zipfile.BadZipFile, UnicodeDecodeError, yaml.YAMLError, RuntimeError, NotImplementedError):
            done.problems.append(f"{filename}: this file is damaged.")
    if _SETTINGS in contents:
        try:
            _restore_settings(app, owner, json.loads(archive.read(contents[_SETTINGS])))
        except UserError as error:
            done.problems.append(f"{_SETTINGS}: {error.message}")
        except (ValueError, TypeError, AttributeError, zipfile.BadZipFile, RuntimeError):
            done.problems.append(f"{_SETTINGS}: this file is damaged.")
    if not any((done.chats, done.characters, done.presets, done.prompts)) and _SETTINGS not in contents:
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


def _preset(app: App, owner: str, name: str, text: bytes) -> int:
    values = yaml.safe_load(text.decode("utf-8-sig")) or {}
    if not isinstance(values, dict):
        raise UserError("A preset holds lines of the form `temperature: 0.7`.")
    sampling = SamplingParams.read(values)
    free = _free(name, _compare(lambda kept: app.presets.of(owner).read(kept), sampling))
    if free:
        app.presets.of(owner).save(free, sampling)
    return int(free is not None)


def _prompt(app: App, owner: str, name: str, text: str) -> int:
    free = _free(name, _compare(lambda kept: app.prompts.of(owner).read(kept), text))
    if free:
        app.prompts.of(owner).save(free, text)
    return int(free is not None)


def _character(
    app: App, owner: str, name: str, text: bytes, archive: zipfile.ZipFile, contents: dict[str, zipfile.ZipInfo]
) -> int:
    character = read_character(text, f"{name}.yaml")
    free = _free(
        character.name, _compare(lambda kept: replace(app.characters.read(owner, kept), name=character.name), character)
    )
    if not free:
        return 0
    picture = next((entry for path, entry in contents.items() if path.endswith(f"characters/{name}.png")), None)
    app.characters.save(owner, replace(character, name=free), archive.read(picture) if picture else None)
    return 1


def _restore_settings(app: App, owner: str, kept: dict[str, Any]) -> None:
    preferences.set_sampling(app, owner, SamplingParams.read(kept.get("sampling", {})), kept.get("preset"))
    preferences.set_page(app, owner, kept.get("page", {}))
    preferences.set_user_name(app, owner, str(kept.get("name", "")))
    for name, texts in kept.get("pages", {}).items():
        sheet = app.sheets.read(owner, name)
        if not (sheet.prompt or sheet.text):  # what is being written there stays
            app.sheets.change(owner, name, sheet.revision, prompt=str(texts["prompt"]), text=str(texts["text"]))
