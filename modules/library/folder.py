"""A model folder in Hugging Face's form, described from config.json, its companions and the headers of its weights."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.library.spec import ModelShape, ModelSpec, Quantization
from modules.library.weights import (
    Tensor,
    count_parameters,
    main_dtype,
    packed_label,
    packed_weights,
    read_safetensors_header,
)

Json = Mapping[str, Any]
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_NOT_WEIGHTS = re.compile(r"^(training_args|optimizer|scheduler|rng_state.*|scaler|random_states.*)\.|^adapter_model\.", re.I)


def describe_folder(path: Path) -> ModelSpec:
    """Never raises for what is in the folder: what is wrong with it is in `problem`."""
    files = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
    try:
        return _described(path, files)
    except (UserError, OSError) as error:
        reason = error.message if isinstance(error, UserError) else f"{path.name} cannot be read: {error.strerror}."
        return ModelSpec(path.name, path, "folder", sum(file.stat().st_size for file in files.values()), problem=reason)


def _described(path: Path, files: Mapping[str, Path]) -> ModelSpec:
    if "config.json" not in files:
        raise UserError(_without_config(path.name, files))
    config = read_json(files["config.json"])
    weights = weight_files(path.name, files)
    headers = {file: read_safetensors_header(file) for file in weights if file.suffix == ".safetensors"}
    tensors = [entry for header in headers.values() for entry in header.items()]
    quantization = _quantization(config, files, headers)
    size = sum(file.stat().st_size for file in weights)
    dtype = main_dtype(tensors) or config.get("dtype") or config.get("torch_dtype")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    return ModelSpec(
        name=path.name,
        path=path,
        format="folder",
        size_bytes=size,
        architecture=next(iter(config.get("architectures") or []), None) or config.get("model_type"),
        parameters=_parameters(tensors, size, dtype, quantization),
        dtype=dtype,
        quantization=quantization,
        context_length=_first(text, *_CONTEXT),
        shape=shape_of(text or config),
        chat_template=_chat_template(files),
        custom_code="auto_map" in config and not is_known_to_transformers(str(config.get("model_type", ""))),
        vision="vision_config" in config,
    )


def _without_config(name: str, files: Mapping[str, Path]) -> str:
    if "adapter_config.json" in files:
        return f"{name} is an adapter (LoRA), not a model: move it into loras/."
    if "params.json" in files and any(file.startswith("consolidated.") for file in files):
        return f"{name} is in Meta's own format. Convert it once: python download-model.py --from-meta models/{name}"
    if any(file.endswith((".safetensors", ".bin", ".pt", ".pth")) for file in files):
        return f"{name} has weights but no config.json, which says what model they are. Download the whole repository."
    return f"There is no model in the folder {name}: it has no config.json and no weights."


def weight_files(name: str, files: Mapping[str, Path]) -> list[Path]:
    """The files that loading reads: safetensors before the pickled forms, all shards of an index. Raises UserError."""
    for index in INDEXES:
        if index in files:
            wanted = sorted(set(map(str, read_json(files[index]).get("weight_map", {}).values())))
            missing = [shard for shard in wanted if shard not in files]
            if not missing and wanted:
                return [files[shard] for shard in wanted]
            if wanted and not _other_weights(files, index):
                first = f"{missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else missing[0]
                raise UserError(f"{name} is not whole: {first} of {len(wanted)} files is missing. Download it again.")
    for suffix in (".safetensors", ".bin", ".pt", ".pth"):
        found = [file for key, file in files.items() if key.endswith(suffix) and not _NOT_WEIGHTS.search(key)]
        if found:
            return _one_of(found)
    raise UserError(f"{name} has a config.json but no weights. Download it again, or copy the weights into the folder.")


def _other_weights(files: Mapping[str, Path], index: str) -> bool:
    """Whether there is a complete set beside a broken index, such as one safetensors file beside a .bin index."""
    other = ".safetensors" if index.startswith("pytorch") else ".bin"
    return any(name.endswith(other) and not _NOT_WEIGHTS.search(name) for name in files)


def _one_of(found: list[Path]) -> list[Path]:
    """`model.safetensors` alone where it lies beside others; old GPTQ folders have one file under any name."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if named := [file for file in found if file.name == name]:
            return named
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{path.name} in {path.parent.name} is not valid JSON. Download it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path.name} in {path.parent.name} is not a JSON object. Download it again.")
    return value


# --- quantisation


def _quantization(config: Json, files: Mapping[str, Path], headers: Mapping[Path, dict[str, Tensor]]) -> Quantization | None:
    described = config.get("quantization_config") or {}
    for name in ("quantize_config.json", "quant_config.json"):
        if not described and name in files:
            described = read_json(files[name])
            described.setdefault("quant_method", "awq" if "w_bit" in described else "gptq")
    if not described:
        found = (packed_weights(file, header) for file, header in headers.items())
        return next(filter(None, found), None)
    method = str(described.get("quant_method") or described.get("quantization_method") or "unknown").lower()
    bits = _first(described, "bits", "w_bit", "w_bits")
    if method in ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"):
        bits = 4 if described.get("load_in_4bit") else 8
        kind = str(described.get("bnb_4bit_quant_type", "")).upper() if bits == 4 else "INT8"
        return Quantization("bitsandbytes", bits, label=f"bitsandbytes {kind}".strip())
    if method == "fp8":
        bits = 8
    group = _first(described, "group_size", "q_group_size")
    return Quantization(method, bits, group, bool(described.get("desc_act")), packed_label(method, bits, group))


def _parameters(
    tensors: list[tuple[str, Tensor]], size: int, dtype: str | None, quantization: Quantization | None
) -> int | None:
    if tensors:
        return count_parameters(tensors, quantization)
    if quantization and quantization.bits:
        return int(size * 8 / quantization.bits)
    # Pickled files are not opened here; their size tells it well enough.
    return size // {"float32": 4, "float64": 8}.get(dtype or "", 2)


# --- shape


_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")


def _first(values: Any, *keys: str) -> Any:
    """The first of `keys` that has a value which is not None or a dict."""
    if not isinstance(values, Mapping):
        return None
    return next((values[key] for key in keys if values.get(key) is not None and not isinstance(values[key], dict)), None)


def shape_of(config: Json) -> ModelShape | None:
    """The numbers of a config.json, by the names that different families gave them; None where they are not said."""
    layers = _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    hidden = _first(config, "hidden_size", "n_embd", "d_model", "dim")
    heads = _first(config, "num_attention_heads", "n_head", "n_heads")
    vocabulary = _first(config, "vocab_size", "padded_vocab_size")
    numbers = (layers, hidden, heads, vocabulary)
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        return None
    key_value_heads = _first(config, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
    if key_value_heads is None:
        key_value_heads = _first(config.get("attn_config"), "kv_n_heads")
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        key_value_heads = 1
    head_dim = _first(config, "head_dim", "kv_channels") or hidden // heads
    return ModelShape(
        layers=int(layers),
        hidden_size=int(hidden),
        heads=int(heads),
        kv_heads=int(key_value_heads or heads),
        head_dim=int(head_dim),
        vocabulary=int(vocabulary),
        tied_embeddings=config.get("tie_word_embeddings") is True,
    )


# --- chat template, custom code


def chat_template_in(folder: Path) -> str | None:
    """The chat template of a model folder; a file without one hides no other. Raises UserError for a file that cannot be read."""
    return _chat_template({file.name: file for file in folder.iterdir() if file.is_file()})


def _chat_template(files: Mapping[str, Path]) -> str | None:
    if "chat_template.jinja" in files and (source := files["chat_template.jinja"].read_text(encoding="utf-8")).strip():
        return source
    for name in ("chat_template.json", "tokenizer_config.json"):
        if name in files and (source := _template_of(read_json(files[name]).get("chat_template"))):
            return source
    return None


def _template_of(value: Any) -> str | None:
    """A template as it is, or of several with names the one called "default"; None for one without text."""
    if isinstance(value, str):
        return value if value.strip() else None
    entries = value if isinstance(value, list) else ()
    named = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}
    written = {name: source for name, source in named.items() if isinstance(source, str) and source.strip()}
    return written.get("default") or next(iter(written.values()), None)


@lru_cache(maxsize=256)
def is_known_to_transformers(model_type: str) -> bool:
    """Whether transformers has this kind of model itself, found without importing it."""
    package = importlib.util.find_spec("transformers")
    if package is None or package.origin is None or not re.fullmatch(r"[\w-]+", model_type):
        return False
    return (Path(package.origin).parent / "models" / model_type.replace("-", "_")).is_dir()
