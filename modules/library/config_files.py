"""What in a folder's JSON files cannot work, told by file and key before transformers stumbles over it in Python's words.

Only what transformers itself cannot use is refused; what it takes, however odd, is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.library.json_files import read_json
from modules.library.real_files import check_real, what_instead

Json = Mapping[str, Any]

GENERATION = "generation_config.json"
_DTYPE = re.compile(r"^(b?float\d*\w*|half|double|u?int\d+|bool|complex\d+)$")
_ROPE_NUMBERS = (
    "factor", "rope_theta", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "partial_rotary_factor",
)  # fmt: skip
_TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
_OLD_TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt")


def check_config(config: Json, files: Mapping[str, Path]) -> None:
    """config.json. Raises UserError that names file, key and value."""
    place = f"config.json in {files['config.json'].parent.name}"
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            value = part.get(key)
            if value is not None and not isinstance(value, dict) and not (isinstance(value, str) and _DTYPE.match(value)):
                raise UserError(
                    f'{place} has {value!r} as "{key}", which is no number format. Write "float16", "bfloat16" or "float32", '
                    "or take the line out."
                )
        for key, value in _positions(part):
            raise UserError(f'{place} has {value!r} as "{key}", where a number is expected. Write it without quotation marks.')


def _positions(config: Json) -> Iterator[tuple[str, Any]]:
    """Numbers of the rotary positions that are written as text."""
    if isinstance(config.get("rope_theta"), str):
        yield "rope_theta", config["rope_theta"]
    for name in ("rope_scaling", "rope_parameters"):
        outer = config.get(name)
        for rope in (outer, *outer.values()) if isinstance(outer, dict) else ():
            if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) != "default":
                yield from ((f"{name}.{key}", rope[key]) for key in _ROPE_NUMBERS if isinstance(rope.get(key), str))


def generation_problem(files: Mapping[str, Path]) -> str | None:
    """What is wrong with generation_config.json, by its key and value: no reply could be written with it, though a model trained."""
    path = files.get(GENERATION)
    if path is None:
        return None
    try:
        config = read_json(path)
    except UserError as error:
        # transformers passes over what is no JSON at all, and takes config.json's values.
        return error.message if path.read_bytes().removeprefix(b"\xef\xbb\xbf").strip()[:1] == b"[" else None
    for key in _TOKENS:
        value = config.get(key)
        numbers = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            return (
                f'{path.name} in {path.parent.name} has {value!r} as "{key}", where the number of a token or a list of them '
                "is expected. Correct it, or delete the file."
            )
    return None


def check_tokenizer(files: Mapping[str, Path]) -> tuple[str, ...]:
    """Whether the tokenizer's files are what their names say, by their first bytes. Raises UserError.

    Returns what is wrong with those that nobody reads, because tokenizer.json is there.
    """
    for name in ("tokenizer.json", *_TOKENIZER_SETTINGS, *(() if "tokenizer.json" in files else _OLD_TOKENIZERS)):
        if name in files:
            check_real(files[name])
    if "tokenizer_config.json" in files:
        read_json(files["tokenizer_config.json"])
    template = files.get("chat_template.jinja")
    if template is not None and template.read_bytes().removeprefix(b"\xef\xbb\xbf").strip():  # an empty one is none
        check_real(template)
        _check_text(template)
    return tuple(filter(None, (what_instead(files[name]) for name in _OLD_TOKENIZERS if name in files)))


def _check_text(path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path.name} in {path.parent.name} is not text in UTF-8. Download it again.") from None
