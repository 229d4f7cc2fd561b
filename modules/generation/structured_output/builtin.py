"""The llguidance inside xllamacpp by its C interface: what llama.cpp does with a form can be seen without a model.

It is older than the one that our own engine uses: it spends other amounts of time and memory, and takes other texts for JSON.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class _TokenizerInit(ctypes.Structure):
    """LlgTokenizerInit of llguidance.h, with room for what other versions add."""

    _fields_ = (
        ("vocab_size", ctypes.c_uint32),
        ("tok_eos", ctypes.c_uint32),
        ("token_lens", ctypes.POINTER(ctypes.c_uint32)),
        ("token_bytes", ctypes.c_char_p),
        ("tokenizer_json", ctypes.c_char_p),
        ("tokenize_assumes_string", ctypes.c_bool),
        ("tokenize_fn", ctypes.c_void_p),
        ("use_approximate_greedy_tokenize_fn", ctypes.c_bool),
        ("tokenize_user_data", ctypes.c_void_p),
        ("slices", ctypes.c_void_p),
        ("more", ctypes.c_uint64 * 8),
    )


class _ConstraintInit(ctypes.Structure):
    """LlgConstraintInit; the limits stay as its own function sets them, as they do in llama.cpp."""

    _fields_ = (
        ("tokenizer", ctypes.c_void_p),
        ("log_buffer_level", ctypes.c_uint32),
        ("log_stderr_level", ctypes.c_uint32),
        ("ff_tokens_ok", ctypes.c_bool),
        ("backtrack_ok", ctypes.c_bool),
        ("limits", ctypes.c_uint64 * 16),
    )


class Library:
    """xllamacpp's compiled part, opened without running any of Python's part of it."""

    def __init__(self) -> None:
        spec = find_spec("xllamacpp")
        (folder,) = (spec.submodule_search_locations if spec is not None else None) or [""]
        call = ctypes.CDLL(str(next(Path(folder).glob("xllamacpp*.so"))))
        call.llg_new_tokenizer.restype = ctypes.c_void_p
        call.llg_new_matcher.restype = ctypes.c_void_p
        call.llg_matcher_get_error.restype = ctypes.c_char_p
        call.llg_matcher_get_mask.restype = ctypes.c_void_p
        call.llg_matcher_get_mask_byte_size.restype = ctypes.c_size_t
        call.llg_matcher_is_accepting.restype = ctypes.c_bool
        self.call: Any = call


class Matcher:
    """A reply's way through a Lark grammar, one token for each byte; the tokens after those 256 are `special`."""

    def __init__(self, library: Library, lark: str, tokens: Sequence[bytes], end: int) -> None:
        """tokens: their texts, control tokens with b"\\xff" before them. end: the token that ends a reply."""
        self._call = library.call
        lengths = (ctypes.c_uint32 * len(tokens))(*map(len, tokens))
        wanted = _TokenizerInit(
            vocab_size=len(tokens),
            tok_eos=end,
            token_lens=lengths,
            token_bytes=b"".join(tokens),
            use_approximate_greedy_tokenize_fn=True,
        )
        said = ctypes.create_string_buffer(512)
        tokenizer = self._call.llg_new_tokenizer(ctypes.byref(wanted), said, ctypes.c_size_t(len(said)))
        if not tokenizer:
            raise RuntimeError(said.value.decode(errors="replace"))
        options = _ConstraintInit()
        self._call.llg_constraint_init_set_defaults(ctypes.byref(options), ctypes.c_void_p(tokenizer))
        options.log_buffer_level = options.log_stderr_level = 0
        self._matcher = ctypes.c_void_p(self._call.llg_new_matcher(ctypes.byref(options), b"lark", lark.encode()))

    def error(self) -> str:
        """What is wrong with the grammar or with the last token; "" where nothing is."""
        said = self._call.llg_matcher_get_error(self._matcher)
        return said.decode(errors="replace") if said else ""

    def mask(self) -> bytes:
        """The tokens that may follow, one bit each, lowest first; nothing after an error."""
        if self._call.llg_matcher_compute_mask(self._matcher):
            return b""
        size = self._call.llg_matcher_get_mask_byte_size(self._matcher)
        return ctypes.string_at(self._call.llg_matcher_get_mask(self._matcher), size)

    def consume(self, token: int) -> bool:
        """Go on by one token; False where the grammar does not allow it."""
        return not self._call.llg_matcher_consume_token(self._matcher, ctypes.c_uint32(token))

    @property
    def accepting(self) -> bool:
        """Whether the reply may end here."""
        return self._call.llg_matcher_is_accepting(self._matcher)
