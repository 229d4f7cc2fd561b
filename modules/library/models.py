"""What lies in the models folder: folders with weights, .gguf files, and addresses of remote engines in NAME.yaml."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from modules.errors import NotFound, UserError
from modules.library.entries import Patience, entries_of, shown_name, unreadable, why_not_read
from modules.library.gguf_file import describe_gguf, name_of, parts_of
from modules.library.hf_folder import describe_folder
from modules.library.hub import RepositoryName
from modules.library.hub_cache import CACHED, is_cache, is_other_cache, snapshots
from modules.library.model_spec import ModelSpec
from modules.library.remote_address import SETTINGS_FILES, describe_remote

Signature = tuple[tuple[str | int, ...], ...]


class ModelLibrary:
    """The models in one folder. Files are read again only when they change. Safe to use from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, tuple[Signature, ModelSpec]] = {}
        self._lock = threading.Lock()
        self._finding: Patience[list[tuple[str, Path]]] = Patience()
        self._describing: Patience[tuple[Signature, ModelSpec]] = Patience()

    def all(self) -> list[ModelSpec]:
        """Every model, by name; those that cannot be loaded too, with their problem. Raises UserError where nothing can be read."""
        with self._lock:
            entries = [self._described(name, path) for name, path in self._places()]
            self._known = {spec.path: self._known[spec.path] for spec in entries if spec.path in self._known}
        return sorted(entries, key=lambda spec: spec.name.lower())

    def find(self, name: str) -> ModelSpec:
        """The model called `name`: as listed, as ORG/NAME or ORG/NAME:BRANCH, with or without .gguf. Raises NotFound."""
        with self._lock:
            places = dict(self._places())
            key = _find_key(name, list(places))
            if key is not None:
                return self._described(key, places[key])
        raise NotFound(_not_found(name, list(places)), param="model")

    def _places(self) -> list[tuple[str, Path]]:
        """(name, path) of everything that may be a model; each name once, and a folder's own before one of the hub's cache."""
        found: dict[str, Path] = {}
        for path in sorted(entries_of(self.folder), key=lambda path: path.name.startswith(CACHED)):
            try:
                places = self._finding.ask(path, lambda path=path: list(places_in(path)))
            except (UserError, OSError):
                places = [(shown_name(path), path)]
            for name, place in places:
                found.setdefault(name if name not in found else f"{path.name}/{place.name}", place)
        return list(found.items())

    def _described(self, name: str, path: Path) -> ModelSpec:
        try:
            self._known[path] = self._describing.ask(path, lambda: _read(name, path, self._known.get(path)))
        except (UserError, OSError) as error:
            reason = error.message if isinstance(error, UserError) else unreadable(path, error)
            return ModelSpec(name, path, "gguf" if path.suffix.lower() == ".gguf" else "folder", 0, problem=reason)
        return self._known[path][1]


def places_in(path: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of the models that one entry of the models folder is or holds; none for an entry that is no model."""
    suffix = path.suffix.lower()
    if (name := shown_name(path)) != path.name:
        yield name, path
    elif suffix == ".gguf":
        if name := name_of(path):
            yield name, path
    elif suffix in (".yaml", ".yml"):
        if path.name not in SETTINGS_FILES:
            yield path.stem, path
    elif why_not_read(path):
        if path.is_symlink() or path.is_dir():
            yield path.name, path
    elif is_cache(path):
        for name, snapshot in snapshots(path):
            yield from models_in(snapshot, name)
    elif path.is_dir() and not is_other_cache(path):
        yield from models_in(path)


def describe(path: Path, name: str | None = None) -> ModelSpec:
    """One model, by its path: a folder, a .gguf file (the first of several), or a .yaml file.

    Never raises for what is in it: what is wrong with it is in `problem`.
    """
    if path.is_dir():
        return describe_folder(path, name)
    if path.suffix.lower() == ".gguf":
        return describe_gguf(path, name or name_of(path) or path.name)
    return describe_remote(path)


def models_in(folder: Path, called: str | None = None) -> Iterator[tuple[str, Path]]:
    """(name, path) of what a folder holds: it is one model, unless it only holds .gguf files: then each of those is."""
    called = called or folder.name
    gguf = sorted(file for file in folder.glob("*.gguf") if file.is_file())
    found = [(f"{called}/{name}", file) for file in gguf if (name := name_of(file))]
    if not found or ((folder / "config.json").exists() and any(folder.glob("*.safetensors"))):
        yield called, folder
    elif len(found) == 1:
        yield called, found[0][1]
    else:
        yield from found


def _read(name: str, path: Path, before: tuple[Signature, ModelSpec] | None) -> tuple[Signature, ModelSpec]:
    """A model as it is now: `before` where none of its files changed."""
    signature = _signature(path)
    if before is not None and before[0] == signature and before[1].name == name:
        return before
    return signature, describe(path, name)


def _signature(path: Path) -> Signature:
    """What changes when a model's files do, or the right to read them; opens none of them."""
    if reason := why_not_read(path):
        raise UserError(reason)
    files = [os.path.join(path, name) for name in sorted(os.listdir(path))] if path.is_dir() else map(str, parts_of(path))
    return tuple((file, *_facts(file)) for file in files)


def _facts(file: str) -> tuple[int, ...]:
    try:
        stat = os.stat(file)
    except OSError:  # a link to nowhere, or a part that is missing
        return ()
    return stat.st_mode, stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size


# --- names


def same_name(one: str, other: str) -> bool:
    """Whether two names mean the same model: ORG/NAME and ORG_NAME, with or without .gguf.

    >>> same_name("TheBloke/Llama-2-7B-GGUF", "thebloke_llama-2-7b-gguf.gguf")
    True
    """
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return name.strip().replace("/", "_").replace(":", "_").lower().removesuffix(".gguf").removesuffix(".yaml")


def _find_key(name: str, names: list[str]) -> str | None:
    if name in names:
        return name
    name = name.strip().rstrip("/").removeprefix("models/").removesuffix(":main")
    # The folder that a download took because another repository, whose name looks alike, had the usual one.
    repository, _, branch = name.partition(":")
    distinct = RepositoryName(repository, branch or "main").distinct_folder
    if distinct in names:
        return distinct
    wanted = _plain(name)
    matches = [known for known in names if _plain(known) == wanted]
    return matches[0] if matches else None


def _not_found(name: str, names: list[str]) -> str:
    if not names:
        return f"There is no model called {name}: models/ is empty. Get one with `python download-model.py ORG/NAME`."
    plain = {_plain(known): known for known in names}
    near = [plain[key] for key in difflib.get_close_matches(_plain(name), plain, n=3, cutoff=0.5)]
    hint = (
        f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}."
    )
    return f"There is no model called {name} in models/. {hint}"
