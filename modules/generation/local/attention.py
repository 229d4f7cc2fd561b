"""Attention over pieces of several sequences laid end to end, each looking at its own store and nothing else.

transformers' models call it as their attention implementation; `Pieces` reaches it as the keyword `pieces`.
No padding, no mask between sequences, no copies of the cache: a row costs what its own length costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

from modules.generation.local.decode_attention import DecodeAttention, Rows
from modules.generation.local.kv_cache import Piece
from modules.generation.local.threads import OneThread

NAME = "textloom_pieces"
SMALL = 4096
"""Attention to so few scores is computed on one thread."""


class Pieces(Cache):
    """The cache of one forward pass: writes each piece's new keys and values into its own store.

    decode: computes the pieces of one token, `rows`, all in one call for a layer; `others` are left: (index, where its tokens begin).
    """

    def __init__(self, pieces: Sequence[Piece], decode: DecodeAttention | None = None) -> None:
        super().__init__(layers=[])
        self.pieces = pieces
        self.decode = decode
        self.rows: Rows | None = None
        starts = accumulate((piece.count for piece in pieces), initial=0)
        self.others = list(zip(range(len(pieces)), starts, strict=False))
        if decode is not None and any(piece.count == 1 for piece in pieces):
            self.rows = Rows(pieces)
            self.others = [(index, at) for index, at in self.others if pieces[index].count > 1]
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """key_states [1, heads, tokens, key_dim] and value_states of this pass; returned as they are, for `attend`.

        Those of `rows` are written where they are attended to.
        """
        for index, at in self.others:
            piece = self.pieces[index]
            start, count = piece.start, piece.count
            piece.store.keys[layer_idx].narrow(2, start, count).copy_(key_states.narrow(2, at, count))
            piece.store.values[layer_idx].narrow(2, start, count).copy_(value_states.narrow(2, at, count))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(piece.start for piece in self.pieces)

    def mask(self, index: int, first: int, groups: int, window: int | None, like: Tensor) -> Tensor:
        """What piece `index` may look at: 0 or -inf, [groups · count, tokens from `first` on]; made once for all layers."""
        found = self._masks.get((index, groups, window))
        if found is None:
            piece = self.pieces[index]
            total = piece.start + piece.count
            own = torch.arange(piece.start, total, device=like.device)[:, None]
            other = torch.arange(first, total, device=like.device)[None, :]
            hidden = other > own
            if window is not None:
                hidden |= other <= own - window
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))
            found = self._masks[(index, groups, window)] = mask.repeat(groups, 1)
        return found


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    pieces: Pieces,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, tokens, dim] of the new tokens; key and value, as of `Pieces.update`.

    sliding_window: how many of the last tokens a token sees, itself included; softcap: Gemma 2's bound of the scores;
    s_aux [heads]: GPT-OSS's sinks. Returns [1, tokens, heads, value_dim].
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    if pieces.decode is not None and pieces.rows is not None:
        how = {"scaling": scaling, "window": sliding_window, "softcap": softcap, "sinks": s_aux}
        query_rows, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        pieces.decode.attend(pieces.rows, layer, query_rows, key, value, out, **how)
    for index, at in pieces.others:
        count = pieces.pieces[index].count
        seen = look(pieces, index, layer, query.narrow(2, at, count), scaling, sliding_window, softcap, s_aux)
        out[at : at + count] = seen[0].transpose(0, 1)
    return out[None], None


def look(
    pieces: Pieces,
    index: int,
    layer: int,
    query: Tensor,
    scaling: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """What piece `index` sees in its own store: query [1, heads, count, dim] to [1, heads, count, value_dim]."""
    piece = pieces.pieces[index]
    total = piece.start + piece.count
    first = max(0, piece.start + 1 - window) if window else 0
    keys = piece.store.keys[layer].narrow(2, first, total - first)
    values = piece.store.values[layer].narrow(2, first, total - first)
    _, heads, count, dim = query.shape
    key_heads = keys.shape[1]
    groups = heads // key_heads
    # The query heads that share a key head stand below each other, so that keys are not repeated.
    folded = query.reshape(1, key_heads, groups * count, dim)
    mask = pieces.mask(index, first, groups, window, folded) if count > 1 else None
    if softcap is None and sinks is None:
        if count * heads * total < SMALL and keys.is_cpu:
            with OneThread():
                seen = functional.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
        else:
            seen = functional.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
    else:
        seen = _plainly(folded, keys, values, mask, scaling, softcap, sinks)
    return seen.view(1, heads, count, values.shape[-1])


def _plainly(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention step by step, for the models whose scores are bounded or have a sink."""
    scores = query @ keys.transpose(-1, -2) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    scores = scores.float()
    if sinks is None:
        return torch.softmax(scores, -1).to(query.dtype) @ values
    count = scores.shape[-2] // (sinks.numel() // scores.shape[1])
    column = sinks.float().reshape(scores.shape[1], -1).repeat_interleave(count, -1)[None, :, :, None]
    weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    return weights.to(query.dtype) @ values


def register() -> None:
    """Make `attend` known to transformers under NAME."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
