"""A tiny model in float64: rounding cannot turn a choice, so every difference from generate() is a mistake of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.generation.local.model import Limits, LocalModel
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, TextDelta

Reference = Callable[[list[int], int], list[int]]


@pytest.fixture(scope="session")
def tiny_model(tiny_llama_folder: Path) -> Any:
    """A function that makes a fresh float64 copy of the tiny model."""
    from transformers import LlamaForCausalLM

    return lambda: LlamaForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float64)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_llama_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama_folder)


@pytest.fixture(scope="session")
def generate(tiny_model: Any) -> Reference:
    """The tokens that transformers' own generate() makes: the truth that rows are compared with."""
    return partial(generated, tiny_model())


@pytest.fixture
def make_local(tiny_model: Any, tiny_tokenizer: Any) -> Iterator[Callable[..., LocalModel]]:
    """Makes engines over the tiny model, and closes them afterwards."""
    made: list[LocalModel] = []

    def make(**limits: Any) -> LocalModel:
        made.append(
            LocalModel("tiny", tiny_model(), tiny_tokenizer, Limits(**{"max_parallel": 4, "cache_bytes": 1 << 28, **limits}))
        )
        return made[-1]

    yield make
    for model in made:
        model.close()


def generated(model: Any, prompt: list[int], count: int) -> list[int]:
    """The tokens that transformers' own generate() makes with `model`."""
    ids = torch.tensor([prompt])
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return made[0, 1 if model.config.is_encoder_decoder else len(prompt) :].tolist()


def greedy(prompt: list[int] | tuple[int, ...], count: int, **more: Any) -> GenerationRequest:
    """A request whose reply shows its tokens."""
    sampling = SamplingParams(do_sample=False, max_tokens=count)
    return GenerationRequest(tuple(prompt), sampling, logprobs=0, **more)


def tokens_of(events: Any) -> list[int]:
    return [token.id for event in events if isinstance(event, TextDelta) for token in event.details]
