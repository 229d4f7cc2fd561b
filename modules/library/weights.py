"""What a folder's weight files hold, by their headers alone: number of weights, their format, how GPTQ or AWQ packed them."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.library.model_spec import Quantization
from modules.library.real_files import check_real

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8", "F8_E5M2": "float8"}
_LARGEST_HEADER = 100 << 20
# What belongs to the packing, not to the model: scales, zero points, maps, bitsandbytes' bookkeeping.
_SIDE_TENSOR = re.compile(
    r"\.(qzeros|scales|g_idx|SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state[.\w]*|weight_scale\w*)$"
)


@dataclass(frozen=True)
class Tensor:
    """One entry of a safetensors header; start, end: bytes within the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors_header(path: Path) -> dict[str, Tensor]:
    """Name → tensor. Raises UserError where the file is not safetensors, or shorter than its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            check_real(path)
            raise UserError(f"{path.name} is not a safetensors file, or it is cut off. Download it again.")
        try:
            entries: dict[str, Any] = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            tensors = {name: _tensor(entry, 8 + length) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path.name} is damaged: its header cannot be read. Download it again.") from None
    end = max((tensor.end for tensor in tensors.values()), default=0)
    if end > size:
        raise UserError(f"{path.name} is cut off: {size} of {end} bytes. Download it again.")
    if not _fits(tensors.values(), 8 + length, size):
        raise UserError(f"{path.name} is damaged: its header does not fit its content. Download it again.")
    return tensors


def _fits(tensors: Iterable[Tensor], start: int, size: int) -> bool:
    """Whether the tensors follow each other without a gap up to the end of the file, each as long as its shape says."""
    at = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        bits = BITS.get(tensor.dtype)
        if tensor.start != at or tensor.end < at or (bits and prod(tensor.shape) * bits != (tensor.end - tensor.start) * 8):
            return False
        at = tensor.end
    return at == size


def _tensor(entry: Mapping[str, Any], base: int) -> Tensor:
    start, end = entry["data_offsets"]
    return Tensor(str(entry["dtype"]), tuple(map(int, entry["shape"])), base + int(start), base + int(end))


def count_parameters(tensors: Iterable[tuple[str, Tensor]], quantization: Quantization | None) -> int:
    """How many weights the model has, however few bytes they were packed into."""
    total = 0
    for name, tensor in tensors:
        if _SIDE_TENSOR.search(name):
            continue
        elements = prod(tensor.shape)
        if quantization and quantization.bits and name.endswith(".qweight"):
            elements = elements * 32 // int(quantization.bits)
        elif quantization and quantization.method == "bitsandbytes" and quantization.bits == 4 and tensor.dtype == "U8":
            elements *= 2
        total += elements
    return total


def main_dtype(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The floating-point format of most of the weights, by torch's name."""
    sizes = Counter[str]()
    for name, tensor in tensors:
        if tensor.dtype in NAMES and not _SIDE_TENSOR.search(name):
            sizes[NAMES[tensor.dtype]] += tensor.end - tensor.start
    return sizes.most_common(1)[0][0] if sizes else None


def packed_weights(path: Path, tensors: Mapping[str, Tensor]) -> Quantization | None:
    """How GPTQ or AWQ packed the weights of a file that nothing else describes; None for ordinary weights.

    GPTQ keeps qweight [in·bits/32, out], AWQ [in, out·bits/32]; both keep qzeros [groups, out·bits/32] and scales [groups, out].
    """
    for name, qweight in tensors.items():
        layer, _, kind = name.rpartition(".")
        scales, zeros = tensors.get(f"{layer}.scales"), tensors.get(f"{layer}.qzeros")
        if kind != "qweight" or scales is None or zeros is None or len(qweight.shape) != 2 or len(zeros.shape) != 2:
            continue
        out = scales.shape[-1]
        bits = zeros.shape[1] * 32 // out
        if bits not in (2, 3, 4, 8):
            return None
        is_gptq = qweight.shape[1] == out
        inputs = qweight.shape[0] * 32 // bits if is_gptq else qweight.shape[0]
        group = inputs // zeros.shape[0]
        group_size = -1 if group == inputs else group
        method = "gptq" if is_gptq else "awq"
        act_order = is_gptq and _is_reordered(path, tensors.get(f"{layer}.g_idx"))
        return Quantization(method, bits, group_size, act_order, packed_label(method, bits, group_size))
    return None


def packed_label(method: str, bits: float | None, group_size: int | None) -> str:
    """For people: "GPTQ 4-bit 128g"."""
    parts = [method.upper(), f"{bits:g}-bit" if bits else "", f"{group_size}g" if group_size and group_size > 0 else ""]
    return " ".join(filter(None, parts))


def _is_reordered(path: Path, g_idx: Tensor | None) -> bool:
    """Whether GPTQ went through the columns by importance (act-order): then the groups of the columns do not ascend."""
    if g_idx is None or g_idx.dtype != "I32":
        return False
    with path.open("rb") as file:
        file.seek(g_idx.start)
        groups = struct.unpack(f"<{prod(g_idx.shape)}i", file.read(g_idx.end - g_idx.start))
    return any(later < earlier for earlier, later in pairwise(groups))
