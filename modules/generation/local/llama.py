"""Decoders of Llama's shape, computed with fewer and larger operations than transformers needs.

Llama, Mistral, Qwen 2 and 3, SmolLM and many others are of this shape; `compute` checks the scores against the model's own
before it is used, so what merely looks alike stays with transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modules.generation.local.adapters import Plan
from modules.generation.local.attention import Pieces, look
from modules.generation.local.decode_attention import DecodeAttention
from modules.generation.local.kv_cache import Piece, positions
from modules.generation.local.projection import Head, Projection

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class NotLlama(Exception):
    """The model's layers are of another shape."""


class Norm:
    """Root-mean-square norm over the last dimension."""

    def __init__(self, module: Any) -> None:
        if set(dict(module.named_parameters())) != {"weight"} or not hasattr(module, "variance_epsilon"):
            raise NotLlama(type(module).__name__)
        self.weight = module.weight
        self._shape = tuple(module.weight.shape)
        self.least = module.variance_epsilon
        self._quick = self.weight.dtype == torch.float32 and self.weight.is_cpu
        if self._quick:
            width = self.weight.shape[0]
            self._scaled = self.weight.detach() * width**0.5
            self._floor = torch.tensor((width * self.least) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        if self._quick and x.dtype == torch.float32:
            # The same with the root of the sum of squares, which is one operation, and so half as long on a processor.
            return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._floor) * self._scaled
        return functional.rms_norm(x, self._shape, self.weight, self.least)


class Layer:
    """One decoder layer."""

    def __init__(self, module: Any, name: str, index: int) -> None:
        attention, mlp = module.self_attn, module.mlp
        children = {child for child, _ in attention.named_children()}
        if (
            {child for child, _ in module.named_children()} != LAYER
            or children - {"q_norm", "k_norm"} != ATTENTION
            or {child for child, _ in mlp.named_children()} != MLP
            or not _is_silu(mlp.act_fn)
        ):
            raise NotLlama(type(module).__name__)
        self.index = index
        self.dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        # Where the layers differ in it, each knows its own window; else the configuration does.
        knows = attention if hasattr(attention, "sliding_window") else attention.config
        self.window: int | None = getattr(knows, "sliding_window", None)
        self.before_attention = Norm(module.input_layernorm)
        self.before_mlp = Norm(module.post_attention_layernorm)
        self.query_norm = Norm(attention.q_norm) if "q_norm" in children else None
        self.key_norm = Norm(attention.k_norm) if "k_norm" in children else None
        self.qkv = _joined(attention, f"{name}.self_attn", ("q_proj", "k_proj", "v_proj"))
        self.out = _joined(attention, f"{name}.self_attn", ("o_proj",))
        self.gate_up = _joined(mlp, f"{name}.mlp", ("gate_proj", "up_proj"))
        self.down = _joined(mlp, f"{name}.mlp", ("down_proj",))
        (_, _, queries), (_, _, keys), _ = self.qkv.parts
        self.heads = queries // self.dim
        self.key_heads = (keys - queries) // self.dim
        self.width = self.gate_up.parts[0][2]


def _is_silu(activation: Any) -> bool:
    some = torch.linspace(-4, 4, 9)
    return torch.allclose(activation(some), functional.silu(some))


def _joined(parent: Any, name: str, children: Sequence[str]) -> Projection:
    return Projection([getattr(parent, child) for child in children], [f"{name}.{child}" for child in children])


class Decoder:
    """All layers, from token ids to the hidden states after the last norm."""

    def __init__(self, model: Any) -> None:
        """Raises NotLlama."""
        decoder = model.get_decoder()
        name = next(found for found, module in model.named_modules() if module is decoder)
        if not {"embed_tokens", "layers", "norm", "rotary_emb"} == {child for child, _ in decoder.named_children()}:
            raise NotLlama(type(decoder).__name__)
        if any(module._forward_pre_hooks or hasattr(module, "_hf_hook") for module in decoder.modules()):
            raise NotLlama("its layers are moved about")
        self.embed = decoder.embed_tokens
        self.rotary = decoder.rotary_emb
        self.layers = [Layer(layer, f"{name}.layers.{index}", index) for index, layer in enumerate(decoder.layers)]
        self.norm = Norm(decoder.norm)
        self.head = Head(model.get_output_embeddings())
        self.decode: DecodeAttention | None = None

    def pack(self) -> None:
        """Give the layers' own weights up for what oneDNN reads faster, one matrix after the other, where it has such a form."""
        for layer in self.layers:
            for projection in (layer.qkv, layer.out, layer.gate_up, layer.down):
                projection.pack()

    def logits(self, pieces: Sequence[Piece], embedded: Tensor, keep: Tensor | None, adapt: Plan | None) -> Tensor:
        """embedded [tokens, hidden] to scores [len(keep) or tokens, vocabulary]."""
        return self.head(self.hidden(pieces, embedded, keep, adapt))

    def hidden(self, pieces: Sequence[Piece], embedded: Tensor, keep: Tensor | None, adapt: Plan | None) -> Tensor:
        x = embedded
        places = torch.tensor([positions(pieces)], device=x.device)
        cos, sin = self.rotary(x[None], position_ids=places)
        cos, sin = cos[0, :, None], sin[0, :, None]
        half = cos.shape[-1] // 2
        # x · cos + rotate_half(x) · sin, with the sign that rotate_half puts before its first half moved into sin.
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        cache = Pieces(pieces, self.decode)
        for layer in self.layers:
            x = self._layer(layer, x, cos, sin, cache, adapt)
        return self.norm(x if keep is None else x[keep])

    def rotate(self, distance: int) -> Callable[[Tensor], Tensor]:
        """A function that gives keys [1, heads, tokens, dim] the positions `distance` after their own (before, where negative)."""
        angle = torch.cat((self.rotary.inv_freq, self.rotary.inv_freq)).float() * distance
        cos, sin = angle.cos(), angle.sin()

        def rotated(keys: Tensor) -> Tensor:
            exact = keys.to(torch.promote_types(keys.dtype, torch.float32))
            left, right = exact.chunk(2, -1)
            return (exact * cos + torch.cat((-right, left), -1) * sin).to(keys.dtype)

        return rotated

    def _layer(self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, cache: Pieces, adapt: Plan | None) -> Tensor:
        count = x.shape[0]
        read = layer.before_attention(x)
        mixed = layer.qkv(read)
        if adapt is not None:
            adapt.add(layer.qkv.parts, read, mixed)
        mixed = mixed.view(count, -1, layer.dim)
        unturned, values = torch.split_with_sizes(mixed, (layer.heads + layer.key_heads, layer.key_heads), 1)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys = torch.split_with_sizes(unturned, (layer.heads, layer.key_heads), 1)
            unturned = torch.cat((layer.query_norm(queries), layer.key_norm(keys)), 1)
        seen = self._attention(layer, unturned, values, cos, sin, cache)
        x = layer.out.added_to(x, seen)
        if adapt is not None:
            adapt.add(layer.out.parts, seen, x)
        read = layer.before_mlp(x)
        both = layer.gate_up(read)
        if adapt is not None:
            adapt.add(layer.gate_up.parts, read, both)
        gate, up = torch.split_with_sizes(both, (layer.width, layer.width), 1)
        middle = functional.silu(gate) * up
        x = layer.down.added_to(x, middle)
        if adapt is not None:
            adapt.add(layer.down.parts, middle, x)
        return x

    def _attention(self, layer: Layer, unturned: Tensor, values: Tensor, cos: Tensor, sin: Tensor, cache: Pieces) -> Tensor:
        """unturned: queries and keys [tokens, heads + key_heads, dim] without positions; to [tokens, heads · dim]."""
        parts = (layer.heads, layer.key_heads)
        seen = values.new_empty(values.shape[0], layer.heads, layer.dim)
        if cache.decode is not None and cache.rows is not None:
            queries, keys = torch.split_with_sizes(unturned, parts, 1)
            how = {"rotation": (cos, sin), "scaling": layer.scaling, "window": layer.window}
            cache.decode.attend(cache.rows, layer.index, queries, keys, values, seen, **how)
        if cache.others:
            turned = torch.addcmul(unturned * cos, unturned.roll(layer.dim // 2, -1), sin).transpose(0, 1)[None]
            queries, keys = torch.split_with_sizes(turned, parts, 1)
            cache.update(keys, values.transpose(0, 1)[None], layer.index)
            for index, at in cache.others:
                count = cache.pieces[index].count
                own = look(cache, index, layer.index, queries.narrow(2, at, count), layer.scaling, layer.window)
                seen[at : at + count] = own[0].transpose(0, 1)
        return seen.flatten(1)
