"""Triton kernels for one decode step on CUDA: one new token for each row, all sizes that change read from device memory.

Nothing here depends on how long the sequences are, so that a captured graph stays right while they grow.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
# Triton comes with CUDA's build of torch alone.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm_kernel(x, change, weight, out, size, least, HAS_CHANGE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    value = tl.load(x + row * size + columns, mask=inside, other=0.0)
    if HAS_CHANGE:
        value = value + tl.load(change + row * size + columns, mask=inside, other=0.0)
        tl.store(x + row * size + columns, value, mask=inside)
    wide = value.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / size + least)
    scale = tl.load(weight + columns, mask=inside, other=0.0)
    tl.store(out + row * size + columns, wide.to(value.dtype) * scale, mask=inside)


def add_and_norm(x: Tensor, change: Tensor | None, weight: Tensor, least: float) -> Tensor:
    """x += change, in place; returns its root-mean-square norm. x, change [rows, hidden]."""
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _norm_kernel[(x.shape[0],)](
        x, x if change is None else change, weight, out, x.shape[1], least, change is not None, block, num_warps=8
    )
    return out


@triton.jit
def _silu_kernel(both, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(both + row * 2 * width + columns, mask=inside, other=0.0)
    up = tl.load(both + row * 2 * width + width + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    tl.store(out + row * width + columns, (wide * tl.sigmoid(wide)).to(gate.dtype) * up, mask=inside)


def silu_and_multiply(both: Tensor) -> Tensor:
    """silu(gate) · up of both [rows, 2 · width], gate first."""
    rows, width = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, width)
    _silu_kernel[(rows, triton.cdiv(width, 1024))](both, out, width, 1024, num_warps=4)
    return out


@triton.jit
def _place_kernel(
    mixed, cos, sin, key_places, value_places, capacities, places, query_out,
    heads, key_heads, DIM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    total = heads + 2 * key_heads
    source = mixed + (row * total + head) * DIM
    columns = tl.arange(0, DIM)
    value = tl.load(source + columns)
    place = tl.load(places + row)
    capacity = tl.load(capacities + row)
    if head < heads + key_heads:
        partner = tl.load(source + (columns + HALF) % DIM)
        partner = tl.where(columns < HALF, -partner, partner)
        turned = value * tl.load(cos + row * DIM + columns) + partner * tl.load(sin + row * DIM + columns)
        if head < heads:
            tl.store(query_out + (row * heads + head) * DIM + columns, turned)
        else:
            keys = tl.load(key_places + row).to(tl.pointer_type(mixed.dtype.element_ty))
            tl.store(keys + ((head - heads) * capacity + place) * DIM + columns, turned)
    else:
        values = tl.load(value_places + row).to(tl.pointer_type(mixed.dtype.element_ty))
        tl.store(values + ((head - heads - key_heads) * capacity + place) * DIM + columns, value)


def turn_and_place(
    mixed: Tensor, cos: Tensor, sin: Tensor, table: Any, layer: int, heads: int, key_heads: int, dim: int
) -> Tensor:
    """Turn queries and keys by their positions, write keys and values into the rows' stores; returns queries [rows, heads, dim].

    mixed [rows, (heads + 2 · key_heads) · dim]; cos, sin [rows, dim]; table: where the stores are, see graphs.Table.
    """
    rows = mixed.shape[0]
    queries = mixed.new_empty(rows, heads, dim)
    _place_kernel[(rows, heads + 2 * key_heads)](
        mixed, cos, sin, table.keys[layer], table.values[layer], table.capacities, table.places, queries,
        heads, key_heads, dim, dim // 2, num_warps=1,
    )  # fmt: skip
    return queries


@triton.jit
def _look_kernel(
    query, key_places, value_places, capacities, places, out, highest, total, scaling,
    SPLITS: tl.constexpr, GROUPS: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    key_head = tl.program_id(1)
    split = tl.program_id(2)
    key_heads = tl.num_programs(1)
    place = tl.load(places + row)
    capacity = tl.load(capacities + row)
    length = place + 1
    start = 0
    if WINDOW > 0:
        start = tl.maximum(0, length - WINDOW)
    part = tl.cdiv(tl.cdiv(length - start, SPLITS), BLOCK) * BLOCK
    first = start + split * part
    last = tl.minimum(first + part, length)
    columns = tl.arange(0, DIM)
    members = tl.arange(0, PADDED)
    real = members < GROUPS
    heads = (row * key_heads + key_head) * GROUPS + members
    kind = query.dtype.element_ty
    asked = tl.load(query + heads[:, None] * DIM + columns[None, :], mask=real[:, None], other=0.0)
    keys = tl.load(key_places + row).to(tl.pointer_type(kind)) + key_head * capacity * DIM
    values = tl.load(value_places + row).to(tl.pointer_type(kind)) + key_head * capacity * DIM
    best = tl.full((PADDED,), float("-inf"), tl.float32)
    weight = tl.zeros((PADDED,), tl.float32)
    seen = tl.zeros((PADDED, DIM), tl.float32)
    for block in range(first, last, BLOCK):
        tokens = block + tl.arange(0, BLOCK)
        inside = tokens < last
        key = tl.load(keys + tokens[:, None] * DIM + columns[None, :], mask=inside[:, None], other=0.0)
        if PADDED == 1:
            scores = tl.sum(key.to(tl.float32) * asked.to(tl.float32), 1)[None, :]
        else:
            scores = tl.dot(asked, tl.trans(key), input_precision="ieee")
        scores = tl.where(inside[None, :], scores * scaling, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        fading = tl.exp(best - higher)
        share = tl.exp(scores - higher[:, None])
        value = tl.load(values + tokens[:, None] * DIM + columns[None, :], mask=inside[:, None], other=0.0)
        weight = weight * fading + tl.sum(share, 1)
        if PADDED == 1:
            seen = seen * fading[:, None] + tl.sum(tl.trans(share) * value.to(tl.float32), 0)[None, :]
        else:
            seen = seen * fading[:, None] + tl.dot(share.to(kind), value, input_precision="ieee")
        best = higher
    if SPLITS == 1:
        tl.store(out + heads[:, None] * DIM + columns[None, :], (seen / weight[:, None]).to(kind), mask=real[:, None])
    else:
        tl.store(out + (heads[:, None] * SPLITS + split) * DIM + columns[None, :], seen, mask=real[:, None])
        tl.store(highest + heads * SPLITS + split, best, mask=real)
        tl.store(total + heads * SPLITS + split, weight, mask=real)


@triton.jit
def _join_kernel(parts, highest, total, out, SPLITS: tl.constexpr, DIM: tl.constexpr):
    head = tl.program_id(0)
    splits = tl.arange(0, SPLITS)
    columns = tl.arange(0, DIM)
    best = tl.load(highest + head * SPLITS + splits)
    share = tl.exp(best - tl.max(best, 0))
    weight = tl.sum(tl.load(total + head * SPLITS + splits) * share, 0)
    seen = tl.load(parts + (head * SPLITS + splits[:, None]) * DIM + columns[None, :])
    tl.store(out + head * DIM + columns, (tl.sum(seen * share[:, None], 0) / weight).to(out.dtype.element_ty))


def look(
    queries: Tensor, table: Any, layer: int, key_heads: int, scaling: float, window: int | None, processors: int
) -> Tensor:
    """Attention of one token for each row over its own store: queries [rows, heads, dim] to [rows, heads · dim]."""
    rows, heads, dim = queries.shape
    groups = heads // key_heads
    splits = 1
    while splits < 32 and rows * key_heads * splits < 4 * processors:
        splits *= 2
    out = torch.empty_like(queries)
    shape = (rows * heads, splits)
    wide = {"dtype": torch.float32, "device": queries.device}
    parts = torch.empty(*shape, dim, **wide) if splits > 1 else out
    highest, total = (torch.empty(shape, **wide), torch.empty(shape, **wide)) if splits > 1 else (out, out)
    _look_kernel[(rows, key_heads, splits)](
        queries, table.keys[layer], table.values[layer], table.capacities, table.places, parts, highest, total, scaling,
        splits, groups, 1 if groups == 1 else max(16, triton.next_power_of_2(groups)), dim, 64, window or 0, num_warps=4,
    )  # fmt: skip
    if splits > 1:
        _join_kernel[(rows * heads,)](parts, highest, total, out, splits, dim, num_warps=1)
    return out.view(rows, heads * dim)


@triton.jit
def _product_kernel(
    x, weight, out, inner, outer,
    ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inside = columns < outer
    along = tl.arange(0, BLOCK_IN)
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    base = weight + columns.to(tl.int64)[:, None] * inner
    for start in range(0, inner, BLOCK_IN):
        place = start + along
        mask = inside[:, None] & (place < inner)[None, :]
        part = tl.load(base + place[None, :], mask=mask, other=0.0, eviction_policy="evict_first")
        total += part.to(tl.float32) * tl.load(x + place, mask=place < inner, other=0.0).to(tl.float32)[None, :]
    tl.store(out + columns, tl.sum(total, 1).to(out.dtype.element_ty), mask=inside)


def product(x: Tensor, weight: Tensor, block_out: int, block_in: int, warps: int) -> Tensor:
    """x · weightᵀ for a single row: x [1, in], weight [out, in]. It only has to read the weights as fast as memory gives them."""
    outer, inner = weight.shape
    out = x.new_empty(1, outer)
    _product_kernel[(triton.cdiv(outer, block_out),)](x, weight, out, inner, outer, 1, block_out, block_in, num_warps=warps)
    return out
