"""LoRAs beside a model's weights: any row of a batch may have its own, or none, at its own strength."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.errors import Conflict, NotFound, UserError
from modules.generation.local.kv_cache import Piece

Parts = Sequence[tuple[str, int, int]]
"""(module name, first column, last column) of an output that several modules make together."""


@dataclass(frozen=True)
class Change:
    """What a LoRA adds to one module: x → x · downᵀ · upᵀ. down [rank, in] and up [out, rank], its scale in it."""

    down: Tensor
    up: Tensor


class Adapters:
    """All LoRAs of one model. Only the model's own thread touches it, save for `names`."""

    def __init__(self, model: Any, *, hooks: bool) -> None:
        """hooks: add to the outputs of the model's modules; without them, whoever computes calls `Plan.add`."""
        self._modules = dict(model.named_modules())
        self._hooks = hooks
        self._handles: dict[str, Any] = {}
        self._loaded: dict[str, dict[str, Change]] = {}
        self._current: Plan | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def load(self, name: str, path: Path) -> None:
        """Read a PEFT folder. Raises UserError where it does not fit this model, Conflict where the name is taken."""
        if name in self._loaded:
            raise Conflict(f"An adapter called {name} is loaded already. Unload it first.", param="adapter")
        config, tensors = _read(name, path)
        self._loaded[name] = self._changes(name, config, tensors)
        if self._hooks:
            for module in self._loaded[name]:
                if module not in self._handles:
                    self._handles[module] = self._modules[module].register_forward_hook(self._hook(module))

    def unload(self, name: str) -> None:
        if name not in self._loaded:
            raise NotFound(f"There is no adapter {name} loaded.", param="adapter")
        del self._loaded[name]
        for module in [module for module in self._handles if not any(module in changes for changes in self._loaded.values())]:
            self._handles.pop(module).remove()

    def plan(self, pieces: Sequence[Piece]) -> Plan | None:
        """Who gets what in this pass; None where nobody has an adapter."""
        spans: list[tuple[int, int, dict[str, Change], float]] = []
        at = 0
        for piece in pieces:
            if piece.adapter is not None and piece.strength:
                spans.append((at, at + piece.count, self._loaded[piece.adapter], piece.strength))
            at += piece.count
        self._current = Plan(_joined(spans)) if spans else None
        return self._current

    def _hook(self, name: str) -> Any:
        def add(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._current is not None:
                x = inputs[0]
                self._current.add(((name, 0, output.shape[-1]),), x.flatten(0, -2), output.flatten(0, -2))

        return add

    def _changes(self, name: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Change]:
        changes = {}
        for key in sorted(tensors):
            one, other = (".lora_A.", ".lora_B.") if ".lora_A." in key else (".lora_B.", ".lora_A.")
            if key.replace(one, other) not in tensors:
                raise UserError(f"The adapter {name} is not whole: {key} has no counterpart. Download it again.")
            if not key.endswith(".lora_A.weight"):
                continue
            down, up = tensors[key], tensors[key.replace(".lora_A.", ".lora_B.")]
            module_name = self._place(name, key.removesuffix(".lora_A.weight").removeprefix("base_model.model."))
            module = self._modules[module_name]
            wanted = (_size(module, "in_features", "nx"), _size(module, "out_features", "nf"))
            if (down.shape[1], up.shape[0]) != wanted:
                raise UserError(
                    f"The adapter {name} was made for another model: {module_name} has {wanted[0]} inputs and {wanted[1]} outputs "
                    f"here, and the adapter's {down.shape[1]} and {up.shape[0]}."
                )
            scale = _scale(config, module_name, down.shape[0])
            device, dtype = self._device_and_dtype(module)
            changes[module_name] = Change(down.to(device, dtype), (up.float() * scale).to(device, dtype))
        if not changes:
            raise UserError(f"The adapter {name} has no LoRA weights in it.")
        if missing := [module for module in self._targets(config, changes) if module not in changes]:
            first = f"{missing[0]} and {len(missing) - 1} others" if len(missing) > 1 else missing[0]
            raise UserError(
                f"The adapter {name} is not whole: its files have nothing for {first}, which its adapter_config.json names. "
                "Download it again."
            )
        return changes

    def _targets(self, config: dict[str, Any], changes: Collection[str]) -> list[str]:
        """The modules that the adapter's settings mean, among those that lie where `changes` do; [] where they choose layers."""
        targets = config.get("target_modules")
        if not targets or targets == "all-linear" or config.get("layers_to_transform") is not None:
            return []
        excluded = config.get("exclude_modules") or ()
        groups = {_group(module) for module in changes}
        return [
            name
            for name, module in self._modules.items()
            if _group(name) in groups
            and _size(module, "in_features", "nx") > 0
            and _is_meant(name, targets)
            and not _is_meant(name, excluded)
        ]

    def _place(self, name: str, wanted: str) -> str:
        """The module of this model that `wanted` names; models that also see keep theirs one level deeper."""
        if wanted in self._modules:
            return wanted
        ends = [module for module in self._modules if module.endswith("." + wanted.removeprefix("model."))]
        if len(ends) == 1:
            return ends[0]
        raise UserError(f"The adapter {name} was made for another model: this one has no module {wanted}.")

    def _device_and_dtype(self, module: Any) -> tuple[torch.device, torch.dtype]:
        # Quantised or packed weights do not tell the number format that the model computes in; its embedding does.
        embedding = next(found.weight for found in self._modules.values() if isinstance(found, torch.nn.Embedding))
        own = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), embedding.device)
        return own, embedding.dtype


class Plan:
    """What one pass adds: spans of tokens with their adapter and strength."""

    def __init__(self, spans: Sequence[tuple[int, int, dict[str, Change], float]]) -> None:
        self._spans = spans

    def add(self, parts: Parts, x: Tensor, output: Tensor) -> None:
        """Add to output [tokens, out] of `parts` what the adapters make of their input x [tokens, in]."""
        for first, last, changes, strength in self._spans:
            for name, left, right in parts:
                change = changes.get(name)
                if change is not None:
                    small = (x[first:last].to(change.down.dtype) @ change.down.T) * strength
                    output[first:last, left:right] += (small @ change.up.T).to(output.dtype)


def _joined(spans: list[tuple[int, int, dict[str, Change], float]]) -> list[tuple[int, int, dict[str, Change], float]]:
    """Neighbours with the same adapter and strength as one."""
    joined = spans[:1]
    for span in spans[1:]:
        before = joined[-1]
        if before[1] == span[0] and before[2] is span[2] and before[3] == span[3]:
            joined[-1] = (before[0], *span[1:])
        else:
            joined.append(span)
    return joined


def _group(module: str) -> str:
    """Where a layer's number stands: models that also see have layers of the same names in their other parts."""
    return re.split(r"\.\d+\.", module, maxsplit=1)[0]


def _is_meant(module: str, names: str | Sequence[str]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _read(name: str, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        raise UserError(f"{name} is not an adapter: it has no readable adapter_config.json.") from None
    if config.get("peft_type") != "LORA":
        raise UserError(f"{name} is an adapter of the kind {config.get('peft_type')}; only LORA can be used here.")
    if config.get("use_dora"):
        raise UserError(f"{name} is a DoRA, which cannot run beside others. Merge it into its base model first.")
    if config.get("modules_to_save"):
        kept = ", ".join(config["modules_to_save"])
        raise UserError(
            f"{name} replaces whole layers ({kept}), so it cannot run beside others. Merge it into its base model first."
        )
    tensors = read_adapter_weights(name, path)
    odd = next((key for key in tensors if ".lora_A.weight" not in key and ".lora_B.weight" not in key), None)
    if odd is not None:
        raise UserError(f"{name} changes more than LoRA weights ({odd}). Merge it into its base model first.")
    return config, tensors


def read_adapter_weights(name: str, path: Path) -> dict[str, Tensor]:
    """Name → tensor of a PEFT folder. Raises UserError; Python code in a pickled file is never run."""
    from safetensors.torch import load_file

    try:
        if (path / "adapter_model.safetensors").exists():
            return load_file(path / "adapter_model.safetensors")
        if (path / "adapter_model.bin").exists():
            found = torch.load(path / "adapter_model.bin", map_location="cpu", weights_only=True)
            if isinstance(found, dict) and all(isinstance(tensor, Tensor) for tensor in found.values()):
                return found
            raise TypeError("no tensors by name")
    except Exception as error:
        # A damaged pickle makes its reader fail in any way, and torch's sentence advises to let it run code.
        reason = "is damaged, or holds something else than weights (code in it is never run)"
        raise UserError(
            f"The file with the weights of the adapter {name} {reason}. Download it again, as safetensors."
        ) from error
    raise UserError(f"The adapter {name} has no weights: adapter_model.safetensors is missing.")


def _size(module: Any, *names: str) -> int:
    return next((int(getattr(module, name)) for name in names if hasattr(module, name)), -1)


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    alpha = config.get("lora_alpha", rank)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
