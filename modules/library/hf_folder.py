"""A model folder in Hugging Face's form, described from config.json, its companions and the headers of its weights."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.library.config_files import check_config, check_quantization, check_tokenizer, generation_problem
from modules.library.entries import files_of, unreadable
from modules.library.json_files import read_json
from modules.library.model_spec import ModelShape, ModelSpec, Quantization
from modules.library.real_files import check_real
from modules.library.weight_files import Candidate, unnamed_shard, weight_files
from modules.library.weights import (
    Tensor,
    count_parameters,
    main_dtype,
    packed_label,
    packed_weights,
    read_safetensors_header,
)
from modules.library.whole import architecture_of, not_whole

log = logging.getLogger(__name__)
Json = Mapping[str, Any]
_READ = (".json", ".safetensors", ".bin", ".pt", ".pth", ".model", ".txt", ".jinja")
"""Endings of files that make a model."""


def describe_folder(path: Path, name: str | None = None) -> ModelSpec:
    """name: what it is called where that is not the folder's own name.

    Never raises for what is in the folder: what is wrong with it is in `problem`.
    """
    name = name or path.name
    files: dict[str, Path] = {}
    unread: dict[str, str] = {}
    try:
        files, unread = files_of(path)
        spec = _described(path, name, files)
    except (UserError, OSError) as error:
        spec = _unusable(path, name, files, error.message if isinstance(error, UserError) else unreadable(path, error))
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
        log.info("%s cannot be described", name, exc_info=True)
        spec = _unusable(
            path, name, files, f"config.json in {name} has values of another kind than transformers writes. Download it again."
        )
    # What cannot be read is why something is missing; where all is there, it is only odd.
    reasons = tuple(reason for file, reason in unread.items() if file.endswith(_READ))
    if spec.problem and reasons:
        return replace(spec, problem=f"In the folder {name}, {reasons[0]}")
    return replace(spec, warnings=spec.warnings + reasons)


def _unusable(path: Path, name: str, files: Mapping[str, Path], problem: str) -> ModelSpec:
    return ModelSpec(name, path, "folder", sum(file.stat().st_size for file in files.values()), problem=problem)


def _described(path: Path, name: str, files: Mapping[str, Path]) -> ModelSpec:
    if "config.json" not in files:
        raise UserError(_without_config(name, files))
    config = read_json(files["config.json"])
    check_config(config, files)
    weights, headers = _weights(name, config, files)
    warnings = check_tokenizer(files)
    tensors = [entry for header in headers.values() for entry in header.items()]
    quantization = _quantization(config, files, headers)
    size = sum(file.stat().st_size for file in weights)
    dtype = main_dtype(tensors) or config.get("dtype") or config.get("torch_dtype")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    return ModelSpec(
        name=name,
        path=path,
        format="folder",
        size_bytes=size,
        architecture=architecture_of(config) or config.get("model_type"),
        parameters=_parameters(tensors, size, dtype, quantization),
        dtype=dtype,
        quantization=quantization,
        context_length=_first(text, *_CONTEXT),
        shape=shape_of(text or config),
        chat_template=_chat_template(files),
        custom_code="auto_map" in config and not is_known_to_transformers(str(config.get("model_type", ""))),
        vision="vision_config" in config,
        weights=tuple(file.name for file in weights),
        warnings=warnings,
        problem=generation_problem(files),
    )


def _weights(name: str, config: Json, files: Mapping[str, Path]) -> tuple[list[Path], dict[Path, dict[str, Tensor]]]:
    """The files that are loaded, and the headers of those that have any. Raises UserError where they are not the whole model."""
    headers: dict[Path, dict[str, Tensor]] = {}

    def problem_of(candidate: Candidate) -> str | None:
        try:
            for file in candidate.files:
                if file.suffix == ".safetensors":
                    headers[file] = read_safetensors_header(file)
                else:
                    check_real(file)
        except UserError as error:
            return error.message
        tensors = {key: tensor for file in candidate.files for key, tensor in headers.get(file, {}).items()}
        problem = not_whole(name, config, tensors, candidate.names if tensors else ())
        if problem and (left := unnamed_shard(files, candidate.files)):
            index, shard = left
            return f"{problem} The index {index} does not name {shard}."
        return problem

    chosen = weight_files(name, files, problem_of)
    return chosen, {file: headers[file] for file in chosen if file in headers}


def _without_config(name: str, files: Mapping[str, Path]) -> str:
    if "adapter_config.json" in files:
        return f"{name} is an adapter (LoRA), not a model: move it into loras/."
    if "params.json" in files and any(file.startswith("consolidated.") for file in files):
        return f"{name} is in Meta's own format. Convert it once: python download-model.py --from-meta models/{name}"
    if any(file.endswith((".safetensors", ".bin", ".pt", ".pth")) for file in files):
        return f"{name} has weights but no config.json, which says what model they are. Download the whole repository."
    return f"There is no model in the folder {name}: it has no config.json and no weights."


# --- quantisation


def _quantization(config: Json, files: Mapping[str, Path], headers: Mapping[Path, dict[str, Tensor]]) -> Quantization | None:
    described = config.get("quantization_config") or {}
    place = "quantization_config of config.json"
    for name in ("quantize_config.json", "quant_config.json"):
        if not described and name in files:
            described = read_json(files[name])
            described.setdefault("quant_method", "awq" if "w_bit" in described else "gptq")
            place = name
    check_quantization(described, place, files["config.json"].parent.name)
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
    return _chat_template(files_of(folder)[0])


def _chat_template(files: Mapping[str, Path]) -> str | None:
    if "chat_template.jinja" in files and (source := files["chat_template.jinja"].read_text(encoding="utf-8-sig")).strip():
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
