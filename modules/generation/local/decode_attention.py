"""Decode attention on the CPU: the new tokens of all rows of a step in one call for each layer, by a kernel that numba compiles.

A call writes the rows' new keys and values and attends over each row's own memory. Its threads are those of torch's OpenMP,
so there are never two pools, and torch.set_num_threads binds both. Prompts, and whatever has no kernel, are for `attention`.
"""

from __future__ import annotations

import ctypes
import logging
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.generation.local.kernel_cache import cache_folder
from modules.generation.local.kv_cache import LayerLayout, Layout, Piece

log = logging.getLogger(__name__)
DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
MOST_GROUPS, MOST_DIM = 16, 256
"""A kernel is unrolled over the query heads of a key head and over a head's dimension; larger ones are left to torch."""
SMALL = 1 << 17
"""So few multiplications are done by the calling thread alone: waking the others takes longer."""
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How far the kernel may be from float64, in standard deviations of the values."""
SOURCES = tuple(Path(__file__).with_name(name) for name in ("decode_kernel.py", "vector_intrinsics.py"))


class NoKernel(Exception):
    """Why decode attention is left to torch."""


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: its address, the same as something to call, and the float32 numbers that it needs beside.

    made: what the code lives as long as. scratch: for each thread; partial: for each part of a row and each key head.
    """

    made: Any
    address: int
    call: Any
    scratch: int
    partial: int


class Rows:
    """The pieces of a pass that are one token: where each row's cache is, and how its work is divided. Made once for all layers.

    table [rows, 4]: address of the cache's addresses, its capacity, the new token's place in it, its index in the pass.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        lines, at = [], 0
        for piece in pieces:
            if piece.count == 1:
                store = piece.store
                lines.append((store.addresses.data_ptr(), store.capacity, piece.start, at))
            at += piece.count
        self.count = len(lines)
        self._table = np.array(lines, dtype=np.int64).reshape(-1, 4)
        self.address: int = self._table.ctypes.data
        self.seen: int = int(self._table[:, 2].sum()) + self.count
        self._parts: dict[int, tuple[Any, int, int]] = {}

    def parts(self, window: int, chunk: int, most: int) -> tuple[int, int]:
        """(address of how many parts the rows before each have, how many all have)."""
        found = self._parts.get(window)
        if found is None:
            seen = self._table[:, 2] + 1
            if window:
                seen = np.minimum(seen, window)
            length = -(-seen // (chunk * most)) * chunk
            before = np.zeros(self.count + 1, dtype=np.int64)
            np.cumsum(-(-seen // length), out=before[1:])
            found = self._parts[window] = before, before.ctypes.data, int(before[-1])
        return found[1:]


class DecodeAttention:
    """Decode attention of one model, and the memory that it computes in. For one thread at a time."""

    def __init__(self, layout: Layout) -> None:
        """Raises NoKernel."""
        _require_support(layout)
        from modules.generation.local import decode_kernel

        self._layers = layout.layers
        self._chunk, self._most_parts = decode_kernel.CHUNK, decode_kernel.PARTS
        self._start_team = _start_team()
        self._fields = (ctypes.c_int64 * len(decode_kernel.FIELDS))()
        self._scratch = torch.empty(0)
        self._partial = torch.empty(0)
        self._finished = torch.zeros(0, dtype=torch.int64)

    def attend(self, rows: Rows, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor, **how: Any) -> None:
        """Write the rows' keys and values to their caches, and what their queries see to `out`; how: as of `run`.

        query [tokens, heads, key_dim], key and value [tokens, key_heads, dim], out [tokens, heads, value_dim], contiguous:
        of all tokens of the pass; only the rows' own are read and written. Raises NoKernel.
        """
        shape = self._layers[layer]
        if query.dtype != shape.dtype or value.dtype != shape.dtype:
            raise NoKernel(f"it computes in {query.dtype} and keeps {shape.dtype}")
        kernel = kernel_for(shape.dtype, query.shape[1] // shape.heads, shape.key_dim, shape.value_dim)
        self.run(kernel, rows, layer, query, key, value, out, **how)

    def run(
        self,
        kernel: Kernel,
        rows: Rows,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        *,
        rotation: tuple[Tensor, Tensor] | None = None,
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        """`attend` by that kernel.

        rotation: cos and sin [tokens, key_dim], the first half of sin negated, for queries and keys that do not have their
        positions yet. scaling, window, softcap, sinks: as of `attention.attend`.
        """
        shape = self._layers[layer]
        parts, total = rows.parts(window or 0, self._chunk, self._most_parts)
        items = total * shape.heads
        few = rows.seen * query.shape[1] * (shape.key_dim + shape.value_dim) < SMALL
        threads = 1 if few or items == 1 else torch.get_num_threads()
        cos, sin = (table.data_ptr() for table in rotation) if rotation is not None else (0, 0)
        if sinks is not None:
            sinks = sinks.float().contiguous()
        self._reserve(threads * kernel.scratch, items * kernel.partial, rows.count * shape.heads)
        self._fields[:] = (
            0, 0, items, layer, rows.address, rows.count, parts, shape.heads,
            *_place(query), *_place(key), *_place(value), cos, sin, out.data_ptr(),
            _bits(shape.key_dim**-0.5 if scaling is None else scaling), _bits(softcap or 0.0), window or 0,
            sinks.data_ptr() if sinks is not None else 0,
            self._scratch.data_ptr(), self._partial.data_ptr(), self._finished.data_ptr(),
        )  # fmt: skip
        if threads == 1:
            kernel.call(self._fields)
        else:
            self._start_team(kernel.address, self._fields, threads, 0)

    def _reserve(self, scratch: int, partial: int, finished: int) -> None:
        if self._scratch.numel() < scratch:
            self._scratch = torch.empty(scratch)
        if self._partial.numel() < partial:
            self._partial = torch.empty(partial + partial // 4)
        if self._finished.numel() < finished:
            self._finished = torch.zeros(finished, dtype=torch.int64)


def _place(x: Tensor) -> tuple[int, int, int]:
    """Address of x [tokens, heads, dim], elements from token to token, and from head to head."""
    token, head, one = x.stride()
    if one != 1:
        raise NoKernel("its heads are not in one piece")
    return x.data_ptr(), token, head


@lru_cache(maxsize=256)
def _bits(value: float) -> int:
    return struct.unpack("i", struct.pack("f", value))[0]


@lru_cache(maxsize=64)
def kernel_for(dtype: torch.dtype, groups: int, key_dim: int, value_dim: int) -> Kernel:
    """The compiled and checked kernel for caches of that shape, where `groups` query heads share a key head. Raises NoKernel."""
    if groups > MOST_GROUPS or max(key_dim, value_dim) > MOST_DIM or key_dim % 2:
        raise NoKernel(f"there is no kernel for {groups} heads of {key_dim} at a key head")
    began = time.monotonic()
    folder = cache_folder(SOURCES)
    kernel = _compiled(dtype, groups, key_dim, value_dim, folder)
    error = error_of(kernel, dtype, groups, key_dim, value_dim)
    if not error < TOLERANCE[dtype]:
        raise NoKernel(f"its results differ by {error:.2g}")
    log.info(
        "decode attention: a kernel for %s, %d query heads of %d at a key head, ready after %.1f s; %s",
        DTYPES[dtype], groups, key_dim, time.monotonic() - began,
        f"kept in {folder}" if folder is not None else "compiled again at the next start",
    )  # fmt: skip
    return kernel


def _compiled(dtype: torch.dtype, groups: int, key_dim: int, value_dim: int, folder: Path | None) -> Kernel:
    from numba.core import config

    from modules.generation.local import decode_kernel

    if folder is not None:
        config.CACHE_DIR = str(folder)  # pyright: ignore[reportAttributeAccessIssue]
    made = decode_kernel.compiled(DTYPES[dtype], groups, key_dim, value_dim, folder is not None)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address)
    return Kernel(made, made.address, call, groups * (key_dim + decode_kernel.CHUNK), groups * (value_dim + 2))


@torch.inference_mode()
def error_of(kernel: Kernel, dtype: torch.dtype, groups: int, key_dim: int, value_dim: int) -> float:
    """How far `kernel` is from the same in float64: rows of several lengths, with and without rotation, window, softcap and sinks."""
    from modules.generation.local.kv_cache import Store

    heads = 2
    layout = Layout((LayerLayout(heads, key_dim, value_dim, dtype, torch.device("cpu")),))
    decode = DecodeAttention(layout)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    worst = 0.0
    pieces = [Piece(Store(layout, 256 * (place // 256 + 1)), place, 1) for place in (0, 3, 130, 2200)]
    for piece in pieces:
        piece.store.keys[0].copy_(random(*piece.store.keys[0].shape))
        piece.store.values[0].copy_(random(*piece.store.values[0].shape))
    query, key = random(len(pieces), heads * groups, key_dim), random(len(pieces), heads, key_dim)
    value, rotation = random(len(pieces), heads, value_dim), (random(len(pieces), key_dim), random(len(pieces), key_dim))
    variants: tuple[dict[str, Any], ...] = (
        {},
        {"rotation": rotation, "scaling": 0.2},
        {"window": 140, "softcap": 2.0},
        {"sinks": random(heads * groups)},
    )
    for how in variants:
        out = torch.full((len(pieces), heads * groups, value_dim), torch.nan, dtype=dtype)
        decode.run(kernel, Rows(pieces), 0, query, key, value, out, **how)
        expected = reference(pieces, query, key, value, **how)
        worst = max(
            worst, *((out.double() - expected).abs().amax((1, 2)) / expected.std((1, 2))).nan_to_num(torch.inf).tolist()
        )
    return worst


def reference(
    pieces: Sequence[Piece],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    rotation: tuple[Tensor, Tensor] | None = None,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """What `DecodeAttention.run` computes for pieces of one token in one layer, in float64 and step by step: [rows, heads, value_dim]."""
    query, key, value = query.double(), key.double(), value.double()
    if rotation is not None:
        cos, sin = (table.double()[:, None] for table in rotation)
        query, key = (x * cos + x.roll(x.shape[-1] // 2, -1) * sin for x in (query, key))
    groups = query.shape[1] // key.shape[1]
    rows = []
    for index, piece in enumerate(pieces):
        first = max(0, piece.start + 1 - window) if window else 0
        keys = torch.cat((piece.store.keys[0][0, :, first : piece.start].double(), key[index, :, None]), 1)
        values = torch.cat((piece.store.values[0][0, :, first : piece.start].double(), value[index, :, None]), 1)
        scores = query[index, :, None] @ keys.repeat_interleave(groups, 0).transpose(1, 2)
        scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        if sinks is not None:
            scores = torch.cat((scores, sinks.double()[:, None, None]), -1)
        weights = torch.softmax(scores, -1)[..., : keys.shape[1]]
        rows.append((weights @ values.repeat_interleave(groups, 0))[:, 0])
    return torch.stack(rows)


def _require_support(layout: Layout) -> None:
    """Raises NoKernel."""
    if any(layer.device.type != "cpu" for layer in layout.layers):
        raise NoKernel("the cache is not in the computer's memory")
    if other := {layer.dtype for layer in layout.layers} - DTYPES.keys():
        raise NoKernel(f"there is no kernel for {other.pop()}")
    if find_spec("numba") is None:
        raise NoKernel("numba is not installed")


def _start_team() -> Any:
    """GOMP_parallel(function, data, threads, flags) of the very OpenMP library that torch computes with. Raises NoKernel."""
    try:
        start = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        raise NoKernel("torch's threads cannot be shared on this system") from None
    start.argtypes, start.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return start
