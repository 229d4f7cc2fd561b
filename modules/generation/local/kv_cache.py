"""The keys and values of one sequence: a tensor for each layer, grown on demand, cut back to any prefix at no cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STEP = 256
"""Tokens are allocated in multiples of this."""
_serial = itertools.count()


@dataclass(frozen=True)
class LayerLayout:
    """The shape of one layer's cache: keys [1, heads, tokens, key_dim] and values [1, heads, tokens, value_dim]."""

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """The cache of a whole model, layer by layer."""

    layers: tuple[LayerLayout, ...]

    @property
    def bytes_per_token(self) -> int:
        return sum(layer.bytes_per_token for layer in self.layers)

    def bytes_of(self, capacity: int) -> int:
        return self.bytes_per_token * capacity


def rounded(tokens: int) -> int:
    """The capacity that is allocated for `tokens`."""
    return -(-tokens // STEP) * STEP


class Store:
    """Keys and values of up to `capacity` tokens. How many are valid is the owner's to know.

    place: a number that changes whenever the tensors are others. addresses [layers, 2]: where each layer's keys and values are.
    """

    def __init__(self, layout: Layout, capacity: int) -> None:
        self.layout = layout
        self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.resize(capacity, 0)

    @property
    def bytes(self) -> int:
        return self.layout.bytes_of(self.capacity)

    def resize(self, capacity: int, keep: int) -> None:
        """Make room for `capacity` tokens; the first `keep` stay. The old memory is given back layer by layer."""
        import torch

        old_keys, old_values = self.keys, self.values
        self.keys, self.values = [], []
        for index, layer in enumerate(self.layout.layers):
            keys = torch.empty(1, layer.heads, capacity, layer.key_dim, dtype=layer.dtype, device=layer.device)
            values = torch.empty(1, layer.heads, capacity, layer.value_dim, dtype=layer.dtype, device=layer.device)
            if keep:
                keys[:, :, :keep] = old_keys[index][:, :, :keep]
                values[:, :, :keep] = old_values[index][:, :, :keep]
                old_keys[index] = old_values[index] = keys[:0]
            self.keys.append(keys)
            self.values.append(values)
        self.capacity = capacity
        self.place = next(_serial)
        pairs = zip(self.keys, self.values, strict=True)
        self.addresses = torch.tensor([[keys.data_ptr(), values.data_ptr()] for keys, values in pairs], dtype=torch.int64)

    def truncate(self, tokens: int, keep: int) -> int:
        """Forget all but the first `keep` of `tokens`; returns how many are still there."""
        return keep

    def valid_after_failure(self, tokens: int) -> int:
        """How many of the `tokens` are intact after a forward pass that failed: it only wrote behind them."""
        return tokens

    def copy(self, other: Store, first: int, last: int) -> None:
        """Take tokens first..last of `other`, at the same places."""
        for own, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            own[:, :, first:last] = theirs[:, :, first:last]

    def shift(self, first: int, last: int, to: int, rotate: Callable[[Tensor], Tensor]) -> None:
        """Make tokens first..last those of the places from `to` on; rotate: gives keys [1, heads, tokens, dim] their new positions."""
        end = to + last - first
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[:, :, to:end] = rotate(keys[:, :, first:last])
            values[:, :, to:end] = values[:, :, first:last].clone()


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of new tokens of one sequence: `count` of them, after the `start` that its store holds.

    adapter, strength: the LoRA that it is computed with.
    """

    store: Store
    start: int
    count: int
    adapter: str | None = None
    strength: float = 1.0


def positions(pieces: Sequence[Piece]) -> list[int]:
    """The place of every token in its own sequence, pieces laid end to end."""
    return [place for piece in pieces for place in range(piece.start, piece.start + piece.count)]
