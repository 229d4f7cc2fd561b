"""A model folder quantised to 4 bits in GPTQ's layout, written by hand: every variant that is found in the wild."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32


def write_gptq(
    source: Path,
    folder: Path,
    *,
    act_order: bool = False,
    version: int = 1,
    weights: str = "model.safetensors",
    settings: str | None = "config.json",
) -> dict[str, Tensor]:
    """Quantise the layers of `source` (a tiny Llama) by rounding; returns what all its weights are after that.

    settings: where the quantisation is described: in "config.json", in "quantize_config.json", or nowhere.
    """
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    plain = load_file(source / "model.safetensors")
    packed: dict[str, Tensor] = {}
    exact: dict[str, Tensor] = {}
    for name, weight in plain.items():
        if not name.endswith("_proj.weight"):
            packed[name] = exact[name] = weight
            continue
        parts, exact[name] = _quantised(weight, act_order, version)
        packed |= {name.removesuffix("weight") + part: tensor for part, tensor in parts.items()}
    if weights.endswith(".safetensors"):
        save_file(packed, folder / weights, metadata={"format": "pt"})
    else:
        torch.save(packed, folder / weights)
    described = {"bits": 4, "group_size": GROUP, "desc_act": act_order, "sym": True}
    if version == 2:
        described["checkpoint_format"] = "gptq_v2"
    if settings == "config.json":
        config = json.loads((folder / settings).read_text())
        config["quantization_config"] = {"quant_method": "gptq", **described}
        (folder / settings).write_text(json.dumps(config))
    elif settings:
        (folder / settings).write_text(json.dumps(described))
    return exact


def _quantised(weight: Tensor, act_order: bool, version: int) -> tuple[dict[str, Tensor], Tensor]:
    """weight [out, in] → GPTQ's tensors, and the weight that they stand for."""
    columns = weight.t().float()
    inputs, outputs = columns.shape
    groups = torch.arange(inputs, dtype=torch.int32) // GROUP
    if act_order:
        groups = groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
    largest = torch.stack([columns[groups == group].abs().amax(0) for group in range(inputs // GROUP)])
    scales = (largest / 7).half()
    spread = scales.float()[groups.long()]
    codes = (columns / spread).round().clamp(-8, 7).int() + 8
    zeros = torch.full((inputs // GROUP, outputs), 8 - (version == 1), dtype=torch.int32)
    shifts = torch.arange(0, 32, 4)
    parts = {
        "qweight": (codes.view(inputs // 8, 8, outputs).long() << shifts[None, :, None]).sum(1),
        "qzeros": (zeros.view(len(zeros), outputs // 8, 8).long() << shifts).sum(-1),
    }
    signed = {name: torch.where(part >= 2**31, part - 2**32, part).int() for name, part in parts.items()}
    return {**signed, "scales": scales, "g_idx": groups}, ((codes - 8) * spread).t().contiguous()
