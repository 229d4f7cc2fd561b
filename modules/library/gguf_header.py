"""The header of a .gguf file: what it says about itself, and how long it must be. The gguf package takes seconds for it."""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.library.real_files import check_real

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
"""ggml's number formats: id → (name, weights in a block, bytes of a block)."""

FILE_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip
"""llama.cpp's names for mixtures of them: the value of general.file_type."""


def bytes_per_element(name: str) -> float:
    """Bytes of one number in a format of ggml, its share of the block's scales among them.

    >>> bytes_per_element("f16"), bytes_per_element("q4_0")
    (2.0, 0.5625)
    """
    _, elements, size = next(kind for kind in TENSOR_TYPES.values() if kind[0] == name.upper())
    return size / elements


_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_LONGEST_ARRAY = 4096
_CONTROL = (2, 3)
"""Kinds of tokens that llama.cpp reads only where markers are to be read: unknown, control."""


@dataclass(frozen=True)
class GgufHeader:
    """values: metadata without long arrays, of which `lengths` keeps the number of elements.

    parameters: how many weights; bits: on average for each; main_type: the number format of most of them.
    expected_size: bytes of the whole file, None where it uses a format that this program does not know.
    """

    values: Mapping[str, Any]
    lengths: Mapping[str, int]
    parameters: int
    bits: float | None
    main_type: str
    expected_size: int | None

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    def of_architecture(self, key: str) -> Any:
        """A value such as `context_length`, which GGUF keeps under the architecture's name."""
        return self.values.get(f"{self.architecture}.{key}")


def read_gguf_header(path: Path) -> GgufHeader:
    """Raises UserError where the file is not GGUF, or ends within its header."""
    with _reading(path) as reader:
        return reader.header()


def read_control_tokens(path: Path) -> dict[str, int]:
    """The tokens that control a model and are no text (such as <|im_end|>), with their ids. Raises UserError."""
    with _reading(path) as reader:
        reader.header()
        return reader.control_tokens()


@contextmanager
def _reading(path: Path) -> Iterator[_Reader]:
    with path.open("rb") as file:
        magic = file.read(4)
        if magic in (b"ggjt", b"ggml", b"ggmf", b"tjgg", b"lmgg", b"fmgg"):
            raise UserError(f"{path.name} is in GGML, the format before GGUF. Convert it with llama.cpp, or get a .gguf file.")
        if magic != b"GGUF":
            check_real(path)
            raise UserError(f"{path.name} is not a GGUF file.")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield _Reader(data, path.name)
        except (struct.error, IndexError, ValueError, OverflowError):
            raise UserError(f"{path.name} is cut off or damaged: its header is not whole. Download it again.") from None


class _Reader:
    """Walks through the bytes of a header once."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data = data
        self._name = name
        self._at = 4
        self._arrays: dict[str, tuple[int, int]] = {}

    def header(self) -> GgufHeader:
        version = self._number("<I")
        if version not in (2, 3):
            other_order = version >= 1 << 16
            form = "for big-endian machines" if other_order else f"in version {version} of GGUF"
            raise UserError(f"{self._name} is {form}, which llama.cpp does not read here. Get a newer file.")
        tensors, pairs = self._number("<Q"), self._number("<Q")
        values: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(pairs):
            key = self._text()
            kind, start = self._number("<I"), self._at
            value, length = self._value(kind)
            if length is not None:
                lengths[key] = length
                self._arrays[key] = start, length
            if value is not None:
                values[key] = value
        return self._with_tensors(tensors, values, lengths)

    def _with_tensors(self, tensors: int, values: dict[str, Any], lengths: dict[str, int]) -> GgufHeader:
        weights: Counter[int] = Counter()
        end: int | None = 0
        for _ in range(tensors):
            self._text()
            dimensions = self._number("<I")
            if dimensions > 8:
                raise ValueError("not a tensor")
            elements = prod(self._number("<Q") for _ in range(dimensions))
            kind, offset = self._number("<I"), self._number("<Q")
            weights[kind] += elements
            if end is not None and kind in TENSOR_TYPES:
                _, block, size = TENSOR_TYPES[kind]
                end = max(end, offset + elements // block * size)
            else:
                end = None
        alignment = int(values.get("general.alignment", 32))
        start = -(-self._at // alignment) * alignment
        parameters = weights.total()
        known = all(kind in TENSOR_TYPES for kind in weights)
        stored = sum(count / TENSOR_TYPES[kind][1] * TENSOR_TYPES[kind][2] for kind, count in weights.items()) if known else 0
        main = max(weights, key=lambda kind: weights[kind], default=0)
        return GgufHeader(
            values=values,
            lengths=lengths,
            parameters=parameters,
            bits=stored * 8 / parameters if known and parameters else None,
            main_type=TENSOR_TYPES[main][0] if main in TENSOR_TYPES else f"type {main}",
            expected_size=None if end is None else start + end,
        )

    def control_tokens(self) -> dict[str, int]:
        """Of the vocabulary that `header` has passed."""
        kinds, texts = self._arrays.get("tokenizer.ggml.token_type"), self._arrays.get("tokenizer.ggml.tokens")
        if kinds is None or texts is None:
            return {}
        self._at = kinds[0]
        form = _NUMBERS[self._number("<I")]
        numbers = struct.unpack_from(f"<{kinds[1]}{form[1]}", self._data, self._at + 8)
        self._at = texts[0] + 12
        found: dict[str, int] = {}
        for token, kind in zip(range(texts[1]), numbers, strict=False):
            if kind in _CONTROL:
                found[self._text()] = token
            else:
                self._skip_texts(1)
        return found

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _text(self) -> str:
        length = self._number("<Q")
        if self._at + length > len(self._data):
            raise ValueError("text beyond the end")
        text = self._data[self._at : self._at + length].decode("utf-8", errors="replace")
        self._at += length
        return text

    def _value(self, kind: int) -> tuple[Any, int | None]:
        """(value, None), or (None or the elements, number of elements) for an array."""
        if kind == _TEXT:
            return self._text(), None
        if kind != _ARRAY:
            return self._number(_NUMBERS[kind]) if kind in _NUMBERS else self._unknown(kind), None
        element, length = self._number("<I"), self._number("<Q")
        if element == _TEXT:
            self._skip_texts(length)
            return None, length
        if element not in _NUMBERS:
            self._unknown(element)
        form = _NUMBERS[element]
        start, size = self._at, struct.calcsize(form)
        if start + length * size > len(self._data):
            raise ValueError("array beyond the end")
        self._at += length * size
        if length > _LONGEST_ARRAY:
            return None, length
        return list(struct.unpack_from(f"<{length}{form[1]}", self._data, start)), length

    def _skip_texts(self, count: int) -> None:
        # This loop is most of the time a header takes: vocabularies have 10^5 entries.
        unpack, data, at = struct.Struct("<Q").unpack_from, self._data, self._at
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
        self._at = at

    def _unknown(self, kind: int) -> Any:
        raise ValueError(f"unknown kind of value {kind}")
