"""What lies in the loras folder: PEFT adapters as folders, and GGUF adapters as files."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modules.errors import NotFound, UserError
from modules.library.config_files import Number, check_numbers
from modules.library.entries import Patience, entries_of, files_of, shown_name, unreadable, why_not_read
from modules.library.gguf_header import read_gguf_header
from modules.library.hub_cache import is_cache, snapshots
from modules.library.json_files import read_json
from modules.library.real_files import check_real
from modules.library.weights import read_safetensors_header

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_NUMBERS = {
    "r": Number(whole=True, least=1),
    "lora_alpha": Number(),
    "lora_dropout": Number(least=0, most=1),
}


@dataclass(frozen=True)
class LoraSpec:
    """One adapter. rank, alpha: its size, and the factor of its strength (alpha ÷ rank).

    base_model: the name it was trained on, as its author wrote it. problem: why it cannot be used, in a sentence.
    """

    name: str
    path: Path
    format: Literal["peft", "gguf"]
    size_bytes: int
    base_model: str | None = None
    rank: int | None = None
    alpha: float | None = None
    target_modules: tuple[str, ...] = ()
    kind: str = "LORA"
    problem: str | None = None


class LoraLibrary:
    """The adapters in one folder. Safe to use from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._patience: Patience[list[LoraSpec]] = Patience()

    def all(self) -> list[LoraSpec]:
        """Every adapter, by name; those that cannot be used too, with their problem. Raises UserError where nothing can be read."""
        entries = [adapter for path in entries_of(self.folder) for adapter in self._adapters(path)]
        return sorted(entries, key=lambda entry: entry.name.lower())

    def _adapters(self, path: Path) -> list[LoraSpec]:
        try:
            return self._patience.ask(path, lambda: list(adapters_in(path)))
        except (UserError, OSError) as error:
            reason = error.message if isinstance(error, UserError) else unreadable(path, error)
            return [LoraSpec(shown_name(path), path, "peft", 0, problem=reason)]

    def find(self, name: str) -> LoraSpec:
        """The adapter called `name`, as listed or as ORG/NAME. Raises NotFound."""
        entries = {entry.name: entry for entry in self.all()}
        wanted = name.strip().rstrip("/").removeprefix("loras/").replace("/", "_").replace(":", "_")
        for known, entry in entries.items():
            if wanted.lower() in (known.lower(), known.lower().removesuffix(".gguf")):
                return entry
        near = difflib.get_close_matches(wanted, entries, n=3, cutoff=0.5) or list(entries)[:8]
        hint = (
            f"There are: {', '.join(near)}." if near else "loras/ is empty: train one, or download it with download-model.py."
        )
        raise NotFound(f"There is no adapter called {name} in loras/. {hint}", param="adapter")


def adapters_in(path: Path) -> Iterator[LoraSpec]:
    """The adapters that one entry of the adapters folder is, or holds as the hub's cache."""
    places = snapshots(path) if is_cache(path) else ((shown_name(path), path),)
    for name, place in places:
        if adapter := describe_adapter(place, name):
            yield adapter


def describe_adapter(path: Path, name: str | None = None) -> LoraSpec | None:
    """None for what is no adapter at all. Never raises for what is in the files. name: what it is called, where not as its path."""
    name = name or shown_name(path)
    is_gguf = path.suffix.lower() == ".gguf"
    if not is_gguf and not path.is_symlink() and not path.is_dir():
        return None
    form: Literal["peft", "gguf"] = "gguf" if is_gguf else "peft"
    size = 0
    try:
        if reason := why_not_read(path):
            raise UserError(reason)
        if not is_gguf and not path.is_dir():
            return None
        size = sum(file.stat().st_size for file in ([path] if is_gguf else path.glob("adapter_model.*")) if file.is_file())
        return _gguf_adapter(path, size) if is_gguf else _peft_adapter(path, name, size)
    except (UserError, OSError) as error:
        reason = error.message if isinstance(error, UserError) else unreadable(path, error)
        return LoraSpec(name, path, form, size, problem=reason)


def _peft_adapter(path: Path, name: str, size: int) -> LoraSpec:
    files, unread = files_of(path)
    for file in (*_WEIGHTS, "adapter_config.json"):
        if file in unread:
            raise UserError(f"In the folder {name}, {unread[file]}")
    if "adapter_config.json" not in files:
        if "config.json" in files:
            raise UserError(f"{name} is a whole model, not an adapter: move it into models/.")
        raise UserError(f"{name} has no adapter_config.json, which says what adapter it is.")
    weights = next((files[file] for file in _WEIGHTS if file in files), None)
    if weights is None:
        raise UserError(f"{name} has no weights (adapter_model.safetensors). Download it again, or let its training finish.")
    config = read_json(files["adapter_config.json"])
    kind = str(config.get("peft_type") or "LORA")
    if kind == "LORA":
        check_numbers(config, _NUMBERS, "adapter_config.json", name)
    if weights.suffix == ".safetensors":
        _check_pairs(name, read_safetensors_header(weights))
    else:
        check_real(weights)
    modules, base, rank, alpha = (config.get(key) for key in ("target_modules", "base_model_name_or_path", "r", "lora_alpha"))
    return LoraSpec(
        name=name,
        path=path,
        format="peft",
        size_bytes=size,
        base_model=base if isinstance(base, str) else None,
        rank=rank if isinstance(rank, int) else None,
        alpha=alpha if isinstance(alpha, int | float) else None,
        target_modules=tuple(sorted(map(str, modules))) if isinstance(modules, list) else (str(modules),) if modules else (),
        kind=kind,
    )


def _check_pairs(name: str, tensors: Collection[str]) -> None:
    """Raises UserError where one of the two small matrices of a layer is missing, in a file that has pairs of them."""
    alone = [key for key in sorted(tensors) if _counterpart(key) not in tensors]
    if alone and any(".lora_A." in key for key in tensors if key not in alone):
        raise UserError(f"{name} is not whole: {alone[0]} has no counterpart. Download it again, or train it anew.")


def _counterpart(key: str) -> str:
    one, other = (".lora_A.", ".lora_B.") if ".lora_A." in key else (".lora_B.", ".lora_A.")
    return key.replace(one, other)


def _gguf_adapter(path: Path, size: int) -> LoraSpec:
    header = read_gguf_header(path)
    if header.values.get("general.type") != "adapter":
        raise UserError(f"{path.name} is a whole model, not an adapter: move it into models/.")
    if header.expected_size is not None and path.stat().st_size < header.expected_size:
        raise UserError(f"{path.name} is cut off. Download it again.")
    return LoraSpec(
        name=path.name,
        path=path,
        format="gguf",
        size_bytes=size,
        base_model=header.values.get("general.base_model.0.name") or header.architecture or None,
        alpha=header.values.get("adapter.lora.alpha"),
        kind=str(header.values.get("adapter.type", "lora")).upper(),
    )
