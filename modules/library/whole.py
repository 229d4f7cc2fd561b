"""Whether weight files hold all that config.json promises, by names and shapes in their headers alone.

Loading asks transformers itself, which knows every architecture; this tells the plain cases before anything is loaded. It says
nothing of what it does not know: other names, other architectures.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from modules.library.weights import BITS, Tensor

Json = Mapping[str, Any]

_LAYER = re.compile(r"^(?P<group>(?:.*?\.)?(?:layers|layer|h|blocks|block))\.(?P<number>\d{1,4})\.")
_OF_A_TRANSFORMER = re.compile(r"attn|attention|mixer|mamba|norm|ln_")
_OTHER_NUMBERS = frozenset({"albert", "funnel", "lxmert"})
"""Families whose layers are shared, or numbered in another way."""
_TIED = {
    "llama": False, "mistral": False, "qwen2": False, "qwen3": False, "granite": False, "olmo2": False,
    "gemma": True, "gemma2": True, "gemma3_text": True, "smollm3": True,
}  # fmt: skip
"""Families whose layers are all built like Llama's, and whether their output is the embedding where config.json does not say."""
_NAMED = 3


def not_whole(name: str, config: Json, tensors: Mapping[str, Tensor], names: Collection[str] = ()) -> str | None:
    """What is missing or of another shape, in a sentence that names the first tensors; None where nothing is known to be wrong.

    names: of weights that must be there whatever config.json says.
    """
    if missing := sorted(key for key in names if key not in tensors):
        return f"{name} is not whole: {missing_text(missing)} Download it again."
    layers = _layers(tensors)
    if not layers or config.get("is_encoder_decoder") or config.get("model_type") in _OTHER_NUMBERS:
        return None
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    missing = _missing_layers(layers, text or config)
    wanted = _of_llamas_kind(config, tensors)
    if wanted:
        # A quantised layer keeps its matrix under other names (qweight, weight_packed): any tensor of it will do.
        kept = {key.rpartition(".")[0] for key in tensors}
        missing = [key for key in wanted if key not in tensors and key.rpartition(".")[0] not in kept]
    if missing:
        return f"{name} is not whole: {missing_text(missing)} Download it again."
    return None if config.get("quantization_config") else _of_another_shape(name, wanted, tensors)


def architecture_of(config: Json) -> str | None:
    """The class that config.json names first."""
    named = config.get("architectures")
    first = next(iter(named), None) if isinstance(named, list) else named
    return first if isinstance(first, str) else None


def missing_text(keys: Sequence[str]) -> str:
    """ "its files lack 12 weights, first a, b and c." """
    if len(keys) == 1:
        return f"its files lack {keys[0]}."
    *before, last = keys[:_NAMED]
    first = "first " if len(keys) > _NAMED else ""
    return f"its files lack {len(keys)} weights: {first}{', '.join(before)} and {last}."


def _layers(tensors: Iterable[str]) -> dict[str, set[int]]:
    """Numbers of the layers that there are, by what stands before the number; none where their parts have other names."""
    if not any(_OF_A_TRANSFORMER.search(key) for key in tensors):
        return {}
    found: dict[str, set[int]] = defaultdict(set)
    for key in tensors:
        if match := _LAYER.match(key):
            found[match["group"]].add(int(match["number"]))
    return found


def _missing_layers(layers: Mapping[str, set[int]], text: Json) -> list[str]:
    missing = [f"{group}.{number}" for group, there in layers.items() for number in range(max(there)) if number not in there]
    count = next((text[key] for key in ("num_hidden_layers", "n_layer", "n_layers") if isinstance(text.get(key), int)), 0)
    longest = max(layers, key=lambda group: max(layers[group]))
    return missing + [f"{longest}.{number}" for number in range(max(layers[longest]) + 1, count)]


def _of_llamas_kind(config: Json, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...] | None]:
    """Name → shape (None: unknown) of the weights of a model that is built like Llama; empty for others, and for other names."""
    family = str(config.get("model_type"))
    first = next((match for key in tensors if (match := re.match(r"^(.*?)layers\.\d+\.self_attn\.[qkvo]_proj\.", key))), None)
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
    numbers = [config.get(key) for key in keys]
    if family not in _TIED or first is None or not all(isinstance(number, int) and number > 0 for number in numbers):
        return {}
    hidden, count, heads, vocabulary, inner = (int(number or 0) for number in numbers)
    prefix = first[1]
    of_heads, of_keys = _sizes_of_heads(family, config, hidden, heads)
    shapes: dict[str, tuple[int, ...] | None] = {
        "self_attn.q_proj.weight": (of_heads, hidden) if of_heads else None,
        "self_attn.k_proj.weight": (of_keys, hidden) if of_keys else None,
        "self_attn.v_proj.weight": (of_keys, hidden) if of_keys else None,
        "self_attn.o_proj.weight": (hidden, of_heads) if of_heads else None,
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    # All layers are alike: what one has, all have.
    inside = {key[match.end() :] for key in tensors if (match := _LAYER.match(key)) and match["group"] == f"{prefix}layers"}
    shapes |= {key: None for key in sorted(inside) if key.endswith("norm.weight")}
    wanted = {f"{prefix}layers.{number}.{key}": shape for number in range(count) for key, shape in shapes.items()}
    wanted |= {f"{prefix}norm.weight": (hidden,), f"{prefix}embed_tokens.weight": (vocabulary, hidden)}
    tied = config.get("tie_word_embeddings", _TIED[family])
    if tied and "lm_head.weight" in tensors:
        del wanted[f"{prefix}embed_tokens.weight"]  # either of the two will do
    if not tied and (architecture_of(config) or "").endswith("ForCausalLM"):
        wanted["lm_head.weight"] = (vocabulary, hidden)
    return wanted


def _sizes_of_heads(family: str, config: Json, hidden: int, heads: int) -> tuple[int | None, int | None]:
    """Rows of the matrices for queries, and for keys and values; None where only the family's own default would say."""
    size = config.get("head_dim") or (hidden // heads if family in ("llama", "mistral", "qwen2", "granite") else None)
    groups = config.get("num_key_value_heads") or (heads if family == "llama" else None)
    return size and heads * size, size and groups and groups * size


def _of_another_shape(name: str, wanted: Mapping[str, tuple[int, ...] | None], tensors: Mapping[str, Tensor]) -> str | None:
    for key, shape in wanted.items():
        tensor = tensors.get(key)
        if tensor is not None and shape is not None and BITS.get(tensor.dtype, 0) >= 16 and tensor.shape != shape:
            return (
                f"The weights of {name} do not fit its config.json: {key} is {list(tensor.shape)}, where {list(shape)} is expected. "
                "Take both from the same repository."
            )
    return None
