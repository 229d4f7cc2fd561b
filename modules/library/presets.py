"""Sampling presets: presets/NAME.yaml with the settings that differ from the defaults."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from modules.errors import NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.library.places import path_inside, write_text
from modules.settings.declare import hints_of

log = logging.getLogger(__name__)
_WHAT = "preset's name"


class PresetLibrary:
    """The presets in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        return sorted((file.stem for file in self.folder.glob("*.yaml") if not file.name.startswith(".")), key=str.lower)

    def read(self, name: str) -> SamplingParams:
        """Raises NotFound, and UserError where the file has a value that is out of bounds."""
        path = path_inside(self.folder, name, ".yaml", _WHAT)
        if not path.is_file():
            raise NotFound(f"There is no preset called {name}. There are: {', '.join(self.names())}.", param="preset")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError:
            raise UserError(f"{path.name} is not valid YAML.", param="preset") from None
        if not isinstance(values, dict):
            raise UserError(f"{path.name} must hold lines of the form `temperature: 0.7`.", param="preset")
        return SamplingParams.read(_known(values, path.name))

    def save(self, name: str, sampling: SamplingParams) -> None:
        """Keep what differs from the defaults. Raises UserError for a name that cannot be a file."""
        values = sampling.model_dump(mode="json", exclude_defaults=True)
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else ""
        write_text(path_inside(self.folder, name, ".yaml", _WHAT), text)

    def delete(self, name: str) -> None:
        """Raises NotFound."""
        path = path_inside(self.folder, name, ".yaml", _WHAT)
        if not path.is_file():
            raise NotFound(f"There is no preset called {name}.", param="preset")
        path.unlink()


def _known(values: dict[str, Any], file: str) -> dict[str, Any]:
    """Presets of other UIs have older names, which are translated, and settings that are unknown here, which are left out."""
    older = {alias: name for name, info in SamplingParams.model_fields.items() for alias in hints_of(info).aliases}
    translated = {older.get(key, key): value for key, value in values.items()}
    unknown = [str(key) for key in translated if key not in SamplingParams.model_fields]
    if unknown:
        log.warning("%s: no effect here: %s", file, ", ".join(unknown))
    return {key: value for key, value in translated.items() if key in SamplingParams.model_fields}
