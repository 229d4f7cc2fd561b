"""What in a folder's JSON files cannot work, told by file and key before transformers stumbles over it in Python's words.

Only what transformers itself cannot use is refused; what it takes, however odd, is left to it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.library.json_files import read_json
from modules.library.real_files import check_real, what_instead

Json = Mapping[str, Any]

_ABSENT = object()
GENERATION = "generation_config.json"
_DTYPE = re.compile(r"^(b?float\d*\w*|half|double|u?int\d+|bool|complex\d+)$")
_ROPE_NUMBERS = (
    "factor", "rope_theta", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "partial_rotary_factor",
)  # fmt: skip
_TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
_OLD_TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt")


@dataclass(frozen=True)
class Number:
    """What a number in a file may be. whole: without a fraction; empty: null, which counts as not written."""

    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    empty: bool = False

    def takes(self, value: Any) -> bool:
        if value is None:
            return self.empty
        kinds = int if self.whole else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        least, most = f"{self.least:.10g}", f"{self.most:.10g}"
        if self.least > -math.inf and self.most < math.inf:
            return f"a whole number from {least} to {most}" if self.whole else f"a number from {least} to {most}"
        if self.least > -math.inf:
            return f"a whole number of at least {least}" if self.whole else f"a number of at least {least}"
        return "a whole number" if self.whole else "a number"


_SIZES: dict[str, Number] = {
    "num_hidden_layers": Number(1, 10_000, whole=True, empty=True),
    **dict.fromkeys(("hidden_size", "num_attention_heads", "vocab_size"), Number(1, 2**31, whole=True, empty=True)),
}
_QUANTISATION = {
    **dict.fromkeys(("bits", "w_bit", "w_bits"), Number(1, 16, whole=True, empty=True)),
    **dict.fromkeys(("group_size", "q_group_size"), Number(-1, whole=True, empty=True)),
}
_LENGTHS: dict[str, Number] = dict.fromkeys(
    ("max_length", "max_new_tokens", "min_length", "min_new_tokens"), Number(empty=True)
)


def check_numbers(values: Json, numbers: Mapping[str, Number], file: str, folder: str) -> None:
    """Raises UserError that names `file`, key and value for the first of `numbers` that `values` has as something else.

    Lists are passed over: some families write a number for each layer.
    """
    for key, number in numbers.items():
        value = values.get(key, _ABSENT)
        if value is not _ABSENT and not isinstance(value, list) and not number.takes(value):
            shown = json.dumps(value)[:60]
            raise UserError(f'{file} in {folder} has {shown} as "{key}", where {number} is expected. Correct it.')


def check_quantization(described: Any, file: str, folder: str) -> None:
    """The settings of a quantisation. Raises UserError that names `file` and key."""
    if not isinstance(described, dict):
        raise UserError(f"{file} in {folder} is no object of settings. Download it again.")
    check_numbers(described, _QUANTISATION, file, folder)  # pyright: ignore[reportUnknownArgumentType]


def check_config(config: Json, files: Mapping[str, Path]) -> None:
    """config.json. Raises UserError that names file, key and value."""
    folder = files["config.json"].parent.name
    place = f"config.json in {folder}"
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        check_numbers(part, _SIZES, "config.json", folder)
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
    try:
        check_numbers(config, _LENGTHS, path.name, path.parent.name)
    except UserError as error:
        return error.message
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
