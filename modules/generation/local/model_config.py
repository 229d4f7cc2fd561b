"""What a transformers model's configuration says of it: context length, width of the logits, end-of-sequence tokens."""

from __future__ import annotations

from typing import Any

from modules.generation.context_overflow import DEFAULT_CONTEXT


def context_length_of(config: Any) -> int:
    """The most tokens that a model was made for."""
    text = config.get_text_config(decoder=True)
    for field in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length"):
        value = getattr(text, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_CONTEXT


def vocabulary_size(model: Any) -> int:
    """The width of its logits."""
    config = model.config.get_text_config(decoder=True)
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return getattr(head, "out_features", None) or (weight.shape[0] if weight is not None else config.vocab_size)


def eos_tokens(model: Any, width: int) -> tuple[list[int], list[int]]:
    """The tokens that end a reply, and those that the files name although there are only `width`."""
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    if eos is None:
        eos = getattr(model.config, "eos_token_id", None)
    named = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    return [token for token in named if 0 <= token < width], [token for token in named if token >= width]
