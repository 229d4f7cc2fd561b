"""A small vocabulary, and rows made for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from modules.generation.samplers.rows import RowSampler
from modules.generation.samplers.vocabulary import Vocabulary
from modules.generation.sampling import SamplingParams

MakeRow = Callable[..., RowSampler]


@pytest.fixture(scope="session")
def tokenizer(tiny_llama_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama_folder)


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Any) -> Vocabulary:
    """256 bytes and four markers."""
    return Vocabulary(tokenizer)


@pytest.fixture
def row(vocabulary: Vocabulary) -> MakeRow:
    """row(prompt, top_p=0.9, …): a sampler with those parameters."""

    def make(prompt: Sequence[int] = (), **sampling: Any) -> RowSampler:
        return RowSampler(SamplingParams(**sampling), prompt=prompt, vocabulary=vocabulary)

    return make
