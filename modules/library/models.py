"""What lies in the models folder: folders with weights, .gguf files, and addresses of remote engines in NAME.yaml."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterator
from pathlib import Path

from modules.errors import NotFound
from modules.library.folder import describe_folder
from modules.library.gguf_file import describe_gguf, name_of, parts_of
from modules.library.remote_address import SETTINGS_FILES, describe_remote
from modules.library.spec import ModelSpec

Signature = tuple[tuple[str, int, int], ...]


class ModelLibrary:
    """The models in one folder. Files are read again only when they change. Safe to use from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, tuple[Signature, ModelSpec]] = {}
        self._lock = threading.Lock()

    def all(self) -> list[ModelSpec]:
        """Every model, by name; those that cannot be loaded too, with their problem."""
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

    def _places(self) -> Iterator[tuple[str, Path]]:
        """(name, path) of everything that may be a model."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(".") or path.name.endswith(".part"):
                continue
            if path.is_dir():
                yield from models_in(path)
            elif path.suffix.lower() == ".gguf":
                if name := name_of(path):
                    yield name, path
            elif path.suffix.lower() in (".yaml", ".yml") and path.name not in SETTINGS_FILES:
                yield path.stem, path

    def _described(self, name: str, path: Path) -> ModelSpec:
        signature = _signature(path)
        before = self._known.get(path)
        if before and before[0] == signature and before[1].name == name:
            return before[1]
        spec = describe(path, name)
        self._known[path] = (signature, spec)
        return spec


def describe(path: Path, name: str | None = None) -> ModelSpec:
    """One model, by its path: a folder, a .gguf file (the first of several), or a .yaml file."""
    if path.is_dir():
        return describe_folder(path)
    if path.suffix.lower() == ".gguf":
        return describe_gguf(path, name or name_of(path) or path.name)
    return describe_remote(path)


def models_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of what a folder holds: it is one model, unless it only holds .gguf files: then each of those is."""
    gguf = sorted(file for file in folder.glob("*.gguf") if file.is_file())
    found = [(f"{folder.name}/{name}", file) for file in gguf if (name := name_of(file))]
    if not found or ((folder / "config.json").exists() and any(folder.glob("*.safetensors"))):
        yield folder.name, folder
    elif len(found) == 1:
        yield folder.name, found[0][1]
    else:
        yield from found


def _signature(path: Path) -> Signature:
    """What changes when a model's files do."""
    files = sorted(path.iterdir()) if path.is_dir() else [part for part in parts_of(path) if part.exists()]
    stats = ((file.name, file.stat()) for file in files if file.exists())
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


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
    wanted = _plain(name.strip().rstrip("/").removeprefix("models/").removesuffix(":main"))
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
