"""A model in a .gguf file, or in a numbered set of them, described from its header."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.library.gguf_header import FILE_TYPES, GgufHeader, read_gguf_header
from modules.library.model_spec import ModelShape, ModelSpec, Quantization

_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf$", re.IGNORECASE)


def parts_of(path: Path) -> list[Path]:
    """All files of the set that `path` is one of, there or not; [path] for a file that stands alone."""
    part = _PART.match(path.name)
    if part is None:
        return [path]
    total = int(part["total"])
    return [path.with_name(f"{part['stem']}-{number:05}-of-{total:05}.gguf") for number in range(1, total + 1)]


def name_of(path: Path) -> str | None:
    """What a .gguf file is listed as; None for the later parts of a set and for the image part of a model (mmproj)."""
    if path.name.lower().startswith("mmproj"):
        return None
    first = next((part for part in parts_of(path) if part.exists()), path)
    if path != first:
        return None
    part = _PART.match(path.name)
    return f"{part['stem']}.gguf" if part else path.name


def describe_gguf(path: Path, name: str) -> ModelSpec:
    """Never raises for what is in the file: what is wrong with it is in `problem`."""
    parts = parts_of(path)
    there = [part for part in parts if part.exists()]
    size = sum(part.stat().st_size for part in there)
    try:
        if len(there) < len(parts):
            missing = next(part.name for part in parts if not part.exists())
            raise UserError(f"{name} is not whole: {missing} is missing. Download it again.")
        headers = [_whole(part) for part in parts]
        return _gguf_spec(path, name, size, headers)
    except (UserError, OSError) as error:
        reason = error.message if isinstance(error, UserError) else f"{name} cannot be read: {error.strerror}."
        return ModelSpec(name, path, "gguf", size, problem=reason)


def _whole(path: Path) -> GgufHeader:
    header = read_gguf_header(path)
    size = path.stat().st_size
    if header.expected_size is not None and size < header.expected_size:
        raise UserError(f"{path.name} is cut off: {size} of {header.expected_size} bytes. Download it again.")
    return header


def _gguf_spec(path: Path, name: str, size: int, headers: list[GgufHeader]) -> ModelSpec:
    header = headers[0]
    if header.values.get("general.type") == "adapter":
        raise UserError(f"{name} is an adapter (LoRA), not a model: move it into loras/.")
    if header.architecture == "clip" or header.values.get("general.type") == "mmproj":
        raise UserError(f"{name} is only the image part (mmproj) of a model. Load the model that it belongs to.")
    main = max(headers, key=lambda part: part.parameters)
    label = FILE_TYPES.get(header.values.get("general.file_type", -1), main.main_type)
    parameters = sum(part.parameters for part in headers)
    bits = sum((part.bits or 0) * part.parameters for part in headers) / parameters if parameters else None
    plain = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return ModelSpec(
        name=name,
        path=path,
        format="gguf",
        size_bytes=size,
        architecture=header.architecture or None,
        parameters=parameters or None,
        dtype=plain.get(label),
        quantization=None if label in plain else Quantization("gguf", round(bits, 2) if bits else None, label=label),
        context_length=header.of_architecture("context_length"),
        shape=_gguf_shape(header),
        chat_template=_written(header.values.get("tokenizer.chat_template")),
        vision=any(path.parent.glob("mmproj*.gguf")),
    )


def _written(template: Any) -> str | None:
    return template if isinstance(template, str) and template.strip() else None


def _gguf_shape(header: GgufHeader) -> ModelShape | None:
    layers, hidden = header.of_architecture("block_count"), header.of_architecture("embedding_length")
    heads = _largest(header.of_architecture("attention.head_count"))
    if not (layers and hidden and heads):
        return None
    return ModelShape(
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=_largest(header.of_architecture("attention.head_count_kv")) or heads,
        head_dim=header.of_architecture("attention.key_length") or hidden // heads,
        vocabulary=header.of_architecture("vocab_size") or header.lengths.get("tokenizer.ggml.tokens", 0),
    )


def _largest(value: int | list[int] | None) -> int:
    """Some architectures give a number for each layer."""
    return max(value) if isinstance(value, list) else value or 0
