"""CPU kernel of `decode_attention`, compiled by numba: attention of one new token for each row over the row's own memory.

The compiled function has the signature `void (*)(void *)`: it is one thread's part of a
parallel region, and threads share the work out by an atomic counter. All it reads is in an int64 array of `FIELDS`.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# Numba's intrinsics are typed by numba, not by Python.

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from modules.generation.local.vector_intrinsics import (
    KINDS,
    SIZES,
    add_values,
    as_float,
    copy,
    dots,
    power_of_two,
    read_float,
    read_int,
    rotate,
    take,
    write_float,
    write_int,
)

FIELDS = (
    "claimed",  # work items that threads have taken; 0 at the start
    "workers",  # threads that have begun; 0 at the start
    "items",  # work items: parts of all rows times key heads
    "layer",
    "rows",  # address of [rows, 4]: address of the cache's addresses, its capacity, the new token's place, its index
    "row_count",
    "parts",  # address of [rows + 1]: how many parts the rows before it have
    "key_heads",
    "query", "query_token", "query_head",  # address; elements from token to token and from head to head
    "key", "key_token", "key_head",
    "value", "value_token", "value_head",
    "cos", "sin",  # addresses of [tokens, dim], the first half of sin negated; 0: queries and keys are rotated already
    "out",  # address of [tokens, heads, value_dim]
    "scaling", "softcap",  # bits of float32; softcap 0.0: none
    "window",  # 0: none
    "sinks",  # address of [heads] float32; 0: none
    "scratch",  # address of [threads, groups · (dim + CHUNK)] float32
    "partial",  # address of [parts, key_heads, groups · (value_dim + 2)] float32
    "finished",  # address of [rows, key_heads] int64: parts that are done; 0 at the start and at the end
)  # fmt: skip
CHUNK = 128
"""Tokens whose scores are computed before any of their values are read."""
PARTS = 16
"""A row is divided into at most so many work items. The division depends on its length alone, so its result does not depend on its company."""
(
    CLAIMED, WORKERS, ITEMS, LAYER, ROWS, ROW_COUNT, PARTS_BEFORE, KEY_HEADS, QUERY, QUERY_TOKEN, QUERY_HEAD, KEY, KEY_TOKEN,
    KEY_HEAD, VALUE, VALUE_TOKEN, VALUE_HEAD, COS, SIN, OUT, SCALING, SOFTCAP, WINDOW, SINKS, SCRATCH, PARTIAL, FINISHED,
) = range(len(FIELDS))  # fmt: skip


@numba.njit(fastmath={"contract", "nsz"}, error_model="numpy")
def exponential(x):
    """e^x for x <= 88, as Cephes' expf: within 2 units in the last place, and written so that it is computed for many at once."""
    x = max(x, np.float32(-87.0))
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    x = x - whole * np.float32(0.693359375)
    x = x + whole * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    y = y * x * x + x + np.float32(1.0)
    return y * power_of_two(np.int32(whole))


@numba.njit(error_model="numpy", inline="always")
def row_of(parts, rows, part):
    """The row whose parts include number `part`."""
    low, high = np.int64(0), rows - 1
    while low < high:
        middle = (low + high + 1) // 2
        if read_int(parts, middle) <= part:
            low = middle
        else:
            high = middle - 1
    return low


@numba.njit(fastmath={"contract", "nsz"}, error_model="numpy")
def bound(scores, at, count, cap):
    """score = tanh(score / cap) · cap, in place."""
    for place in range(at, at + count):
        x = read_float(scores, place) / cap
        x = min(max(x, np.float32(-20.0)), np.float32(20.0))
        twice = exponential(x + x)
        write_float(scores, place, cap * (twice - np.float32(1.0)) / (twice + np.float32(1.0)))


@numba.njit(fastmath={"reassoc", "nsz", "nnan"}, error_model="numpy")
def highest_of(scores, at, count):
    best = read_float(scores, at)
    for place in range(at + 1, at + count):
        best = max(best, read_float(scores, place))
    return best


@numba.njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def exponentials(scores, at, count, best):
    """score = e^(score - best), in place; returns their sum."""
    total = np.float32(0.0)
    for place in range(at, at + count):
        value = exponential(read_float(scores, place) - best)
        write_float(scores, place, value)
        total += value
    return total


def compiled(kind: str, groups: int, key_dim: int, value_dim: int, cache: bool) -> Any:
    """The kernel for caches of that kind of number: `groups` query heads share a key head.

    cache: whether it is kept on disk, in numba's CACHE_DIR.
    """
    number = KINDS[kind]
    size = SIZES[kind]
    result = groups * (value_dim + 2)

    @numba.cfunc(types.void(types.intp), cache=cache, error_model="numpy")
    def work(fields):
        worker = take(fields, WORKERS)
        items = read_int(fields, ITEMS)
        layer = read_int(fields, LAYER)
        rows, row_count, parts = read_int(fields, ROWS), read_int(fields, ROW_COUNT), read_int(fields, PARTS_BEFORE)
        key_heads = read_int(fields, KEY_HEADS)
        query, query_token, query_head = read_int(fields, QUERY), read_int(fields, QUERY_TOKEN), read_int(fields, QUERY_HEAD)
        key, key_token, key_head = read_int(fields, KEY), read_int(fields, KEY_TOKEN), read_int(fields, KEY_HEAD)
        value, value_token, value_head = read_int(fields, VALUE), read_int(fields, VALUE_TOKEN), read_int(fields, VALUE_HEAD)
        cos, sin = read_int(fields, COS), read_int(fields, SIN)
        out = read_int(fields, OUT)
        scaling, cap = as_float(read_int(fields, SCALING)), as_float(read_int(fields, SOFTCAP))
        window, sinks = read_int(fields, WINDOW), read_int(fields, SINKS)
        partial, finished = read_int(fields, PARTIAL), read_int(fields, FINISHED)
        asked = read_int(fields, SCRATCH) + worker * groups * (key_dim + CHUNK) * 4
        scores = asked + groups * key_dim * 4
        while True:
            item = take(fields, CLAIMED)
            if item >= items:
                return
            head = item % key_heads
            row = row_of(parts, row_count, item // key_heads)
            first_part = read_int(parts, row)
            part = item // key_heads - first_part
            last_part = read_int(parts, row + 1) - first_part - 1
            cache_at = read_int(rows, row * 4)
            capacity = read_int(rows, row * 4 + 1)
            place = read_int(rows, row * 4 + 2)
            token = read_int(rows, row * 4 + 3)
            keys = read_int(cache_at, layer * 2) + head * capacity * key_dim * size
            values = read_int(cache_at, layer * 2 + 1) + head * capacity * value_dim * size
            own_cos, own_sin = cos + token * key_dim * size, sin + token * key_dim * size

            if part == last_part:
                own = key + (token * key_token + head * key_head) * size
                if cos != 0:
                    rotate(own, own_cos, own_sin, keys + place * key_dim * size, number, number, key_dim)
                else:
                    copy(own, number, keys + place * key_dim * size, number, key_dim, np.float32(1.0))
                own = value + (token * value_token + head * value_head) * size
                copy(own, number, values + place * value_dim * size, number, value_dim, np.float32(1.0))

            for group in range(groups):
                own = query + (token * query_token + (head * groups + group) * query_head) * size
                into = asked + group * key_dim * 4
                if cos != 0:
                    rotate(own, own_cos, own_sin, into, 0, number, key_dim)
                    copy(into, 0, into, 0, key_dim, scaling)
                else:
                    copy(own, number, into, 0, key_dim, scaling)

            # Sums of weighted values [groups, value_dim], highest scores [groups], sums of weights [groups].
            sums = partial + item * result * 4
            for index in range(result):
                write_float(sums, index, np.float32(0.0))
            seen_from = max(place + 1 - window, 0) if window > 0 else np.int64(0)
            span = (place + 1 - seen_from + CHUNK * PARTS - 1) // (CHUNK * PARTS) * CHUNK
            begin = seen_from + part * span
            end = min(begin + span, place + 1)
            for start in range(begin, end, CHUNK):
                tokens = min(end - start, CHUNK)
                for step in range(tokens):
                    dots(asked, keys + (start + step) * key_dim * size, number, key_dim, groups, scores, step, CHUNK)
                for group in range(groups):
                    if cap != np.float32(0.0):
                        bound(scores, group * CHUNK, tokens, cap)
                    best = highest_of(scores, group * CHUNK, tokens)
                    total = np.float32(0.0)
                    if start > begin:
                        before = read_float(sums, groups * value_dim + group)
                        best = max(best, before)
                        faded = exponential(before - best)
                        total = faded * read_float(sums, groups * (value_dim + 1) + group)
                        own = sums + group * value_dim * 4
                        copy(own, 0, own, 0, value_dim, faded)
                    write_float(sums, groups * value_dim + group, best)
                    total += exponentials(scores, group * CHUNK, tokens, best)
                    write_float(sums, groups * (value_dim + 1) + group, total)
                step = np.int64(0)
                while step + 4 <= tokens:
                    own = values + (start + step) * value_dim * size
                    add_values(own, number, value_dim, groups, scores, step, CHUNK, sums, 4)
                    step += 4
                while step < tokens:
                    own = values + (start + step) * value_dim * size
                    add_values(own, number, value_dim, groups, scores, step, CHUNK, sums, 1)
                    step += 1

            # Whoever ends the last part of a row and key head puts them together.
            if last_part > 0:
                if take(finished, row * key_heads + head) < last_part:
                    continue
                write_int(finished, row * key_heads + head, 0)
            base = partial + (first_part * key_heads + head) * result * 4
            for group in range(groups):
                best = read_float(base, groups * value_dim + group)
                for index in range(1, last_part + 1):
                    best = max(best, read_float(base + index * key_heads * result * 4, groups * value_dim + group))
                total = np.float32(0.0)
                if sinks != 0:
                    sink = read_float(sinks, head * groups + group)
                    best = max(best, sink)
                    total = exponential(sink - best)
                joined = base + group * value_dim * 4
                for index in range(last_part + 1):
                    other = base + index * key_heads * result * 4
                    share = exponential(read_float(other, groups * value_dim + group) - best)
                    total += share * read_float(other, groups * (value_dim + 1) + group)
                    if index == 0:
                        copy(joined, 0, joined, 0, value_dim, share)
                    else:
                        write_float(scores, 0, share)
                        add_values(other + group * value_dim * 4, 0, value_dim, 1, scores, 0, 0, joined, 1)
                into = out + ((token * key_heads + head) * groups + group) * value_dim * size
                copy(joined, 0, into, number, value_dim, np.float32(1.0) / total)

    return work
