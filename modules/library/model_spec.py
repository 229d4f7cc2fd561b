"""What is known of a model before it is loaded, read from its files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ModelFormat = Literal["folder", "gguf", "remote"]


@dataclass(frozen=True)
class Quantization:
    """How weights were stored with fewer bits. method: "gptq", "awq", "bitsandbytes", "gguf", …; label for people: "Q4_1"."""

    method: str
    bits: float | None = None
    group_size: int | None = None
    desc_act: bool = False
    label: str = ""


@dataclass(frozen=True)
class ModelShape:
    """What decides the memory of the key–value cache. kv_heads × head_dim × layers × 2 × bytes per token.

    tied_embeddings: the output layer is the embedding, so the matrix is there once.
    """

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_embeddings: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """One entry of models/: a folder with weights, a .gguf file (the first of several), or NAME.yaml.

    problem: why it cannot be loaded, in a sentence (a truncated file, a folder without weights); None where nothing is wrong.
    warnings: what is odd about it, although it can be loaded.
    weights: names of the files in a folder that are its weights, in their order.
    context_length: tokens, as the model was trained; None where the files do not say.
    """

    name: str
    path: Path
    format: ModelFormat
    size_bytes: int
    architecture: str | None = None
    parameters: int | None = None
    dtype: str | None = None
    quantization: Quantization | None = None
    context_length: int | None = None
    shape: ModelShape | None = None
    chat_template: str | None = None
    custom_code: bool = False
    vision: bool = False
    endpoint: str | None = None
    weights: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: str | None = None
