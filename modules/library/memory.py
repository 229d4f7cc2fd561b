"""How much memory a model will need, before it is loaded, and what to change where it will not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from modules.generation.context_overflow import DEFAULT_CONTEXT
from modules.library.disk import size_text
from modules.library.hardware import Machine
from modules.library.model_spec import ModelSpec

Weights = Literal["stored", "float32", "16-bit", "8-bit", "4-bit"]
"""How weights lie in memory; "stored": as in the files, which is all that GGUF, GPTQ and AWQ can do."""
Verdict = Literal["fits", "tight", "too big", "unknown"]

_BITS = {"float32": 32.0, "16-bit": 16.0, "8-bit": 8.0, "4-bit": 4.5}  # nf4 keeps one float32 scale for 64 weights
_STORED = {"float64": 64, "float32": 32, "float8": 8}
_BASE = {"gguf": 150 << 20, "folder": 400 << 20}  # llama.cpp's and torch's own libraries and work space
_READ_AT_ONCE = 512  # prompt tokens whose activations and scores are there at the same time
_TIGHT = 0.9


@dataclass(frozen=True)
class LoadWish:
    """What somebody is about to load. context: tokens of each slot, 0 takes the model's own.

    slots: conversations at the same time. cache_bytes: of one number in the key–value cache (2 for f16, 0.5625 for q4_0).
    """

    weights: Weights = "stored"
    context: int = 0
    slots: int = 1
    cache_bytes: float = 2.0


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes: of the weights, of the key–value cache, and of everything else."""

    weights: int
    cache: int
    other: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.other

    @property
    def parts(self) -> str:
        """For people: what the total is made of."""
        return f"{size_text(self.weights)} of weights, {size_text(self.cache)} for the conversations, {size_text(self.other)} to work"


@dataclass(frozen=True)
class MemoryPlan:
    """Whether a wish fits. available: bytes free `where`: "on the GPU", "in main memory". sentence: all of it for people."""

    need: MemoryNeed
    available: int
    where: str
    verdict: Verdict
    sentence: str


def taken(need: MemoryNeed, cache: int, limit: int | None) -> str:
    """What a loaded model takes, in the words of its estimate. cache: bytes that conversations take now, of at most `limit`."""
    now = replace(need, cache=cache)
    room = f" Conversations may take {size_text(limit)}." if limit else ""
    return f"Takes about {size_text(now.total)} ({now.parts}).{room}"


def memory_need(spec: ModelSpec, wish: LoadWish) -> MemoryNeed:
    """The bytes that `spec` takes once loaded. Remote models take none."""
    if spec.format == "remote":
        return MemoryNeed(0, 0, 0)
    shape = spec.shape
    cache = other = 0
    if shape:
        context = wish.context or spec.context_length or DEFAULT_CONTEXT
        token = 2 * shape.layers * shape.kv_heads * shape.head_dim * wish.cache_bytes
        cache = int(token * context * wish.slots)
        other = _READ_AT_ONCE * 4 * (shape.vocabulary + 8 * shape.hidden_size)
    return MemoryNeed(_weights(spec, wish.weights), cache, _BASE[spec.format] + other)


def _weights(spec: ModelSpec, form: Weights) -> int:
    """Quantised files stay as they are; the rest is counted in weights, as files may keep them in more bits than memory will."""
    if spec.quantization or spec.parameters is None:
        return spec.size_bytes
    if form == "stored":
        return spec.parameters * _STORED.get(spec.dtype or "", 16) // 8
    quantised = spec.parameters
    kept = 0
    if spec.shape and form in ("8-bit", "4-bit"):
        # bitsandbytes leaves the embedding and the output layer in 16 bits.
        matrices = 1 if spec.shape.tied_embeddings else 2
        kept = min(matrices * spec.shape.vocabulary * spec.shape.hidden_size, quantised)
    return int((quantised - kept) * _BITS[form] / 8) + kept * 2


def plan(spec: ModelSpec, wish: LoadWish, machine: Machine, *, on_gpu: bool = True, freed: int = 0) -> MemoryPlan:
    """Whether `wish` fits into what is free, and what would. freed: bytes that the model being replaced will give back."""
    gpu = on_gpu and bool(machine.gpus)
    available = (sum(gpu.free for gpu in machine.gpus) if gpu else machine.memory_free) + freed
    where = "on the GPU" if gpu and len(machine.gpus) == 1 else "on the GPUs" if gpu else "in main memory"
    need = memory_need(spec, wish)
    parts = need.parts
    if spec.format == "remote":
        return MemoryPlan(need, available, where, "fits", "It runs on another engine and takes no memory here.")
    if spec.shape is None and spec.parameters is None:
        return MemoryPlan(need, available, where, "unknown", f"{spec.name} does not say how much memory it needs.")
    have = f"{size_text(available)} are free {where}"
    if need.total <= available * _TIGHT:
        return MemoryPlan(need, available, where, "fits", f"Needs about {size_text(need.total)} ({parts}); {have}.")
    if need.total <= available:
        text = f"This is tight: it needs about {size_text(need.total)} ({parts}), and {have}."
        return MemoryPlan(need, available, where, "tight", text)
    ways = list(_what_would_fit(spec, wish, int(available * _TIGHT)))
    if gpu and need.total <= available + machine.memory_free:
        ways.append("with --auto-devices (or fewer --gpu-layers), partly in main memory and slower")
    hint = f"It would fit {', or '.join(ways)}." if ways else "No setting makes it fit here: choose a smaller model."
    text = f"This will not fit: it needs about {size_text(need.total)} ({parts}), and {have}. {hint}"
    return MemoryPlan(need, available, where, "too big", text)


def _what_would_fit(spec: ModelSpec, wish: LoadWish, limit: int) -> Iterator[str]:
    """The smallest changes, each by itself where possible, that bring the need under `limit` bytes."""
    for form in _forms(spec, wish.weights):
        changed = replace(wish, weights=form)
        total = memory_need(spec, changed).total
        if total <= limit:
            yield f"with {form} weights ({size_text(total)})"
        elif context := _longest_context(spec, changed, limit):
            changes = f"with a context of {context} tokens"
            yield changes if form == wish.weights else f"with {form} weights and a context of {context} tokens"


def _forms(spec: ModelSpec, wished: Weights) -> Iterator[Weights]:
    """The wished form, and the smaller ones that this model can be loaded in."""
    yield wished
    smaller: tuple[Weights, ...] = ("8-bit", "4-bit")
    for form in smaller:
        if spec.format == "folder" and not spec.quantization and _weights(spec, form) < _weights(spec, wished):
            yield form


def _longest_context(spec: ModelSpec, wish: LoadWish, limit: int) -> int | None:
    """The most tokens in powers of two, 512 at least, that fit beside the weights."""
    context = wish.context or spec.context_length or DEFAULT_CONTEXT
    sizes = [1 << power for power in range(9, 24) if 1 << power < context]
    fitting = [size for size in sizes if memory_need(spec, replace(wish, context=size)).total <= limit]
    return max(fitting, default=None)
