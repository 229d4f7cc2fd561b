"""Damaged copies of a good file: cut, flipped, doubled, filled with what does not belong there. The same seed gives the same files.

TEXTLOOM_MUTATIONS=2000 makes a test of a reader try so many; without it a run of the suite tries a few.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

STRANGE_BYTES = [
    b"",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xb8\xe7",
    b"\r",
    b"\xe2\x80\xa8",
    b"\x1b[31m",
    b'"',
    b"\\",
    b"{",
    b"[" * 5000,
    b"}",
    b",,",
    b"---\n",
    b"\t",
    b"<!DOCTYPE html><html>",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"\\ud800",
    b"NaN",
    b"&a *a",
]
STRANGE_VALUES: list[object] = [
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "nan",
    "12",
    "\ud800",
    "a\0b",
    "../../../etc/passwd",
    "n" * 300,
    "<script>alert(1)</script>",
    "{{ '' }}{% for",
    [],
    {},
    [[]],
    [None],
    {"": None},
]


def how_many(usual: int) -> int:
    """How many damaged files to try: what the environment says, else `usual`."""
    return int(os.environ.get("TEXTLOOM_MUTATIONS", usual))


def damaged(data: bytes, count: int, *, seed: int = 0) -> Iterator[bytes]:
    """`count` damaged copies of a file; where it is JSON, half of them are JSON again, with one to three odd values in it."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        if value is not None and chance.random() < 0.5:
            yield _odd_json(value, chance)
            continue
        text = data
        for _ in range(chance.randint(1, 3)):
            text = chance.choice(_OF_BYTES)(text, chance)
        yield text


def _odd_json(value: object, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 3)):
        value = _with_one_odd(value, chance)
    return json.dumps(value, ensure_ascii=chance.random() < 0.7).encode("utf-8", "surrogatepass")


def _with_one_odd(value: Any, chance: random.Random) -> object:
    """A copy of a JSON value with one place, at any depth, replaced, removed, doubled or renamed."""
    deeper = isinstance(value, (dict, list)) and value and chance.random() < 0.8
    if not deeper:
        return chance.choice(STRANGE_VALUES)
    if isinstance(value, list):
        items: list[Any] = list(value)
        at = chance.randrange(len(items))
        match chance.randrange(5):
            case 0:
                del items[at]
            case 1:
                items.insert(at, chance.choice(STRANGE_VALUES))
            case _:
                items[at] = _with_one_odd(items[at], chance)
        return items
    entries: dict[str, Any] = dict(value)
    key = chance.choice(list(entries))
    match chance.randrange(6):
        case 0:
            del entries[key]
        case 1:
            entries[key.upper() if chance.random() < 0.5 else key + "s"] = entries.pop(key)
        case _:
            entries[key] = _with_one_odd(entries[key], chance)
    return entries


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _without_a_part(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.randrange(1, 40) :]


def _with_a_part_twice(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    end = start + chance.randrange(1, 200)
    return data[:end] + data[start:]


def _with_a_flipped_bit(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return data
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def _with_strange_bytes(data: bytes, chance: random.Random) -> bytes:
    at = 0 if chance.random() < 0.3 else chance.randrange(len(data) + 1)
    return data[:at] + chance.choice(STRANGE_BYTES) + data[at:]


def _in_another_encoding(data: bytes, chance: random.Random) -> bytes:
    return data.decode("utf-8", "replace").encode(
        chance.choice(["utf-16", "utf-16-le", "gb18030", "utf-8-sig", "latin-1"]), "replace"
    )


_OF_BYTES: list[Callable[[bytes, random.Random], bytes]] = [
    _cut,
    _without_a_part,
    _with_a_part_twice,
    _with_a_flipped_bit,
    _with_strange_bytes,
    _with_strange_bytes,
    _in_another_encoding,
]
