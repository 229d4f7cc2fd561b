"""Sampling presets: presets/NAME.yaml with the settings that differ from the defaults."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import yaml

from modules.errors import Forbidden, NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.library.entries import named, read_bytes, text_of_bytes
from modules.library.paths import folder_of, path_inside, write_text
from modules.settings.declare import hints_of
from modules.settings.yaml_text import parse_yaml

log = logging.getLogger(__name__)
_WHAT = "preset's name"


LARGEST_FILE = 64 * 1024


def read_preset(data: bytes, file: str) -> dict[str, Any]:
    """The values of a preset as they stand in `file`. Raises UserError."""
    if len(data) > LARGEST_FILE:
        raise UserError(f"{file} is too large for a preset: {LARGEST_FILE // 1024} kB at most.")
    try:
        values = parse_yaml(text_of_bytes(data)) or {}
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{file} is not valid YAML.") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold lines of the form `temperature: 0.7`.")
    return {str(key): value for key, value in values.items()}


class PresetLibrary:
    """The presets in one folder, for everybody; with `personal`, `of` gives each owner a folder of their own before it.

    shared: a folder whose presets can be read here and not changed.
    """

    def __init__(self, folder: Path, personal: Path | None = None, *, shared: Path | None = None) -> None:
        self.folder = folder
        self._personal = personal
        self._shared = shared

    def of(self, owner: str) -> PresetLibrary:
        """What `owner` sees and may change."""
        if self._personal is None:
            return self
        return PresetLibrary(folder_of(self._personal, owner), shared=self.folder)

    def names(self) -> list[str]:
        found = {file.stem for folder in self._folders() for file in named(folder, ".yaml")}
        return sorted(found, key=str.lower)

    def file(self, name: str) -> Path:
        """Where one's own preset of that name lies, or would. Raises UserError for a name that cannot be a file."""
        return _file(self.folder, name)

    def has(self, name: str) -> bool:
        return any(_file(folder, name).is_file() for folder in self._folders())

    def read(self, name: str) -> SamplingParams:
        """Raises NotFound, and UserError where the file has a value that is out of bounds."""
        path = next((path for folder in self._folders() if os.path.lexists(path := _file(folder, name))), None)
        if path is None:
            raise NotFound(f"There is no preset called {name}. There are: {', '.join(self.names())}.", param="preset")
        try:
            values = read_preset(read_bytes(path), path.name)
        except UserError as error:
            raise UserError(error.message, param="preset") from None
        return SamplingParams.read(_known(values, path.name))

    def kept(self, name: str) -> bytes:
        """What is kept of a preset, whether it can be understood or not; empty where there is none. Raises UserError."""
        path = next((path for folder in self._folders() if os.path.lexists(path := _file(folder, name))), None)
        return read_bytes(path) if path else b""

    def save(self, name: str, sampling: SamplingParams) -> None:
        """Keep what differs from the defaults. Raises UserError for a name that cannot be a file."""
        values = sampling.model_dump(mode="json", exclude_defaults=True)
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else ""
        if len(text.encode()) > LARGEST_FILE:
            raise UserError(f"The preset is too large: {LARGEST_FILE // 1024} kB at most. Shorten its longest text.")
        write_text(_file(self.folder, name), text)

    def delete(self, name: str) -> None:
        """Raises NotFound, and Forbidden for a preset that belongs to everybody."""
        path = _file(self.folder, name)
        if os.path.lexists(path):
            path.unlink()
            return
        if self._shared is not None and _file(self._shared, name).is_file():
            raise Forbidden(f"{name} belongs to everybody who uses this server, and cannot be deleted here.")
        raise NotFound(f"There is no preset called {name}.", param="preset")

    def _folders(self) -> list[Path]:
        return [self.folder, self._shared] if self._shared is not None else [self.folder]


def _file(folder: Path, name: str) -> Path:
    return path_inside(folder, name, ".yaml", _WHAT)


def _known(values: dict[str, Any], file: str) -> dict[str, Any]:
    """Presets of other UIs have older names, which are translated, and settings that are unknown here, which are left out."""
    older = {alias: name for name, info in SamplingParams.model_fields.items() for alias in hints_of(info).aliases}
    translated = {older.get(key, key): value for key, value in values.items()}
    unknown = [str(key) for key in translated if key not in SamplingParams.model_fields]
    if unknown:
        log.warning("%s: no effect here: %s", file, ", ".join(unknown))
    return {key: value for key, value in translated.items() if key in SamplingParams.model_fields}
