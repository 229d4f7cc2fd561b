"""What lies in the loras folder: PEFT adapters as folders, and GGUF adapters as files."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modules.errors import NotFound, UserError
from modules.library.gguf_header import read_gguf_header
from modules.library.json_files import read_json
from modules.library.real_files import check_real
from modules.library.weights import read_safetensors_header


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
    """The adapters in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[LoraSpec]:
        """Every adapter, by name; those that cannot be used too, with their problem."""
        if not self.folder.is_dir():
            return []
        entries = [entry for path in sorted(self.folder.iterdir()) if (entry := describe_adapter(path))]
        return sorted(entries, key=lambda entry: entry.name.lower())

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


def describe_adapter(path: Path) -> LoraSpec | None:
    """None for what is no adapter at all. Never raises for what is in the files."""
    if path.name.startswith(".") or path.name.endswith(".part"):
        return None
    is_gguf = path.suffix.lower() == ".gguf"
    if not path.is_dir() and not is_gguf:
        return None
    files = [path] if is_gguf else [file for file in path.glob("adapter_model.*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    form: Literal["peft", "gguf"] = "gguf" if is_gguf else "peft"
    try:
        return _gguf_adapter(path, size) if is_gguf else _peft_adapter(path, size)
    except (UserError, OSError) as error:
        return LoraSpec(path.name, path, form, size, problem=str(error))


def _peft_adapter(path: Path, size: int) -> LoraSpec:
    if not (path / "adapter_config.json").is_file():
        if (path / "config.json").is_file():
            raise UserError(f"{path.name} is a whole model, not an adapter: move it into models/.")
        raise UserError(f"{path.name} has no adapter_config.json, which says what adapter it is.")
    if not any((path / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise UserError(
            f"{path.name} has no weights (adapter_model.safetensors). Download it again, or let its training finish."
        )
    config = read_json(path / "adapter_config.json")
    if (path / "adapter_model.safetensors").is_file():
        _check_pairs(path.name, read_safetensors_header(path / "adapter_model.safetensors"))
    else:
        check_real(path / "adapter_model.bin")
    modules, base, rank, alpha = (config.get(key) for key in ("target_modules", "base_model_name_or_path", "r", "lora_alpha"))
    return LoraSpec(
        name=path.name,
        path=path,
        format="peft",
        size_bytes=size,
        base_model=base if isinstance(base, str) else None,
        rank=rank if isinstance(rank, int) else None,
        alpha=alpha if isinstance(alpha, int | float) else None,
        target_modules=tuple(sorted(map(str, modules))) if isinstance(modules, list) else (modules,) if modules else (),
        kind=str(config.get("peft_type") or "LORA"),
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
