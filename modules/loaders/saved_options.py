"""How each model was last told to load: models/config-user.yaml, regular expressions on the model's name → options."""

from __future__ import annotations

import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import yaml

from modules.errors import UserError
from modules.library.entries import read_text
from modules.loaders.options import LoadOptions
from modules.settings.declare import former_names, hints_of
from modules.settings.yaml_text import parse_yaml

log = logging.getLogger(__name__)


class SavedOptions:
    """Reads and writes one YAML file. Entries further down win; each is a pattern matched at the start of the name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def for_model(self, name: str, given: LoadOptions | None = None) -> LoadOptions:
        """The options saved for `name`, with those explicitly `given` over them. Raises UserError for a broken file."""
        values: dict[str, Any] = {}
        for pattern, entry in self._read().items():
            try:
                matches = re.match(pattern, name, re.IGNORECASE)
            except re.error as error:
                raise UserError(f"{self.path.name}: {pattern!r} is not a regular expression: {error}") from None
            if matches and isinstance(entry, dict):
                values |= _known(entry)
        return LoadOptions.read({**values, **(given.given() if given else {})})

    def save(self, name: str, options: LoadOptions) -> None:
        """Remember what differs from the defaults for exactly this model."""
        with self._lock:
            entries = self._read()
            entries.pop(_exactly(name), None)
            if kept := options.model_dump(mode="json", exclude_defaults=True, exclude=_secrets()):
                entries[_exactly(name)] = kept
            self._write(entries)

    def others(self, name: str) -> dict[str, Any]:
        """All entries but the one for exactly this model."""
        return {pattern: entry for pattern, entry in self._read().items() if pattern != _exactly(name)}

    def take_back(self, name: str, before: SavedOptions) -> None:
        """Have the entry for exactly this model as it was in another file, and all others as they are."""
        with self._lock:
            entries, kept = self.others(name), before._read()
            if _exactly(name) in kept:
                entries[_exactly(name)] = kept[_exactly(name)]
            self._write(entries)

    def _write(self, entries: dict[str, Any]) -> None:
        temporary = self.path.with_suffix(".yaml.tmp")
        temporary.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")
        os.replace(temporary, self.path)

    def _read(self) -> dict[str, Any]:
        if not os.path.lexists(self.path):
            return {}
        try:
            entries = parse_yaml(read_text(self.path)) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{self.path.name} is not valid YAML: {error}") from None
        return entries if isinstance(entries, dict) else {}


def _exactly(name: str) -> str:
    return re.escape(name) + "$"


def _secrets() -> set[str]:
    return {name for name, info in LoadOptions.model_fields.items() if hints_of(info).secret}


def _known(entry: dict[str, Any]) -> dict[str, Any]:
    """The keys of an entry that are options here; older names are translated, others (wbits, …) left out."""
    older = {alias: name for name, info in LoadOptions.model_fields.items() for alias in hints_of(info).aliases}
    values = {older.get(key, key): value for key, value in entry.items()}
    if per_gpu := [str(values[key]) for key in sorted(values) if re.fullmatch(r"gpu_memory_\d+", key) and values[key]]:
        values["gpu_memory"] = per_gpu
    known = LoadOptions.model_fields.keys() | former_names(LoadOptions).keys()
    unknown = [key for key in values if key not in known]
    if unknown:
        log.debug("config-user.yaml: no effect here: %s", ", ".join(unknown))
    return {key: value for key, value in values.items() if key in known and value is not None}
