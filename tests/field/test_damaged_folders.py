"""Model folders that are damaged in some way or other: a sentence in the list, or the right model; never a crash, never other numbers."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.library.models import ModelLibrary
from tests.field.weights import (
    INDEX,
    SHARDS,
    SINGLE,
    by_transformers,
    copied,
    edit,
    keep,
    put,
    scores_of,
    sharded,
    tensors_of,
    write_json,
)

Damage = Callable[[Path], object]


@pytest.fixture
def folder(tiny_llama_folder: Path, tmp_path: Path) -> Path:
    return copied(tiny_llama_folder, tmp_path / "models" / "m")


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The weights under a header that was changed."""

    def damage(folder: Path) -> None:
        data = (folder / SINGLE).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        values = json.loads(data[8 : 8 + length])
        change(values)
        text = json.dumps(values).encode()
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def after_sharding(change: Damage) -> Damage:
    return lambda folder: (sharded(folder), change(folder))


def in_place_of(name: str, make: Callable[[Path], object]) -> Damage:
    return lambda folder: ((folder / name).unlink(), make(folder / name))


NORM, HEAD = "model.norm.weight", "lm_head.weight"
REFUSED: dict[str, tuple[Damage, str]] = {
    "a flipped byte": (
        bytes_of(SINGLE, lambda data: data[:40] + bytes([data[40] ^ 0xFF]) + data[41:]),
        "header cannot be read",
    ),
    "a header without end": (bytes_of(SINGLE, lambda data: struct.pack("<Q", 1 << 60) + data[8:]), "cut off"),
    "tensors over each other": (header(lambda h: h[NORM].update(data_offsets=[0, 256])), "does not fit its content"),
    "negative places": (header(lambda h: h[NORM].update(data_offsets=[-256, 0])), "does not fit its content"),
    "a shape that lies": (header(lambda h: h[NORM].update(shape=[63])), "does not fit its content"),
    "bytes behind the end": (bytes_of(SINGLE, lambda data: data + b"x" * 100), "does not fit its content"),
    "cut off": (bytes_of(SINGLE, lambda data: data[:-1000]), "cut off"),
    "another file": (bytes_of(SINGLE, lambda data: b"GGUF\x03\0\0\0" + bytes(500)), "not a safetensors file"),
    "a part of a download": (lambda folder: (folder / SINGLE).rename(folder / f"{SINGLE}.part"), "no weights"),
    "a link to nowhere": (
        in_place_of(SINGLE, lambda path: path.symlink_to("/nowhere/file")),
        "a link to /nowhere/file, which is not there",
    ),
    "a folder for the weights": (in_place_of(SINGLE, lambda path: path.mkdir()), "no weights"),
    "a folder for config.json": (in_place_of("config.json", lambda path: path.mkdir()), "no config.json"),
    "config.json in UTF-16": (bytes_of("config.json", lambda data: data.decode().encode("utf-16")), "not valid JSON"),
    "brackets without end": (bytes_of("config.json", lambda data: b"[" * 100_000), "not valid JSON"),
    "a template that is no text": (bytes_of("chat_template.jinja", lambda data: b"\xff\xfe\x00{{"), "chat_template.jinja"),
    "a list for tokenizer_config.json": (
        lambda folder: write_json(folder / "tokenizer_config.json", []),
        "tokenizer_config.json",
    ),
    "the same shard twice": (
        after_sharding(lambda folder: shutil.copy(folder / SHARDS[0], folder / SHARDS[1])),
        "model.layers.1.self_attn.q_proj.weight",
    ),
    "half a shard": (after_sharding(bytes_of(SHARDS[1], lambda data: data[: len(data) // 2])), "cut off"),
    "names of another program": (
        lambda folder: keep(folder, {f"module.{key}": tensor for key, tensor in tensors_of(folder).items()}),
        "lm_head.weight",
    ),
    "quantised, says config.json in one word": (
        lambda folder: put(folder / "config.json", quantization_config="gptq"),
        "config.json",
    ),
}
RIGHT: dict[str, Damage] = {
    "an index that leaves the folder": after_sharding(
        lambda folder: edit(folder / INDEX, lambda index: index["weight_map"].update({NORM: "../elsewhere.safetensors"}))
    ),
    "an index of numbers": after_sharding(lambda folder: write_json(folder / INDEX, {"weight_map": {NORM: 1}})),
    "an index without its unused part": after_sharding(
        lambda folder: edit(folder / INDEX, lambda index: index.pop("metadata"))
    ),
    "an index that is a list": after_sharding(lambda folder: write_json(folder / INDEX, [])),
    "shards under each other's names": after_sharding(
        lambda folder: (
            (folder / SHARDS[0]).rename(folder / "third"),
            (folder / SHARDS[1]).rename(folder / SHARDS[0]),
            (folder / "third").rename(folder / SHARDS[1]),
        )
    ),
    "names without their beginning": lambda folder: keep(
        folder, {key.removeprefix("model."): tensor for key, tensor in tensors_of(folder).items()}
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_sentence_in_the_list(folder, what):
    damage, reason = REFUSED[what]
    damage(folder)
    (spec,) = ModelLibrary(folder.parent).all()
    assert reason in str(spec.problem)


@pytest.mark.parametrize("what", RIGHT)
def test_the_right_model(folder, tiny_llama_folder, what):
    RIGHT[what](folder)
    assert torch.allclose(scores_of(folder), by_transformers(tiny_llama_folder), atol=1e-4)
