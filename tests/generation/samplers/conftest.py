"""A small vocabulary, and rows made for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from modules.generation.samplers.batch_sampler import SequenceSampler
from modules.generation.samplers.vocabulary import Vocabulary
from modules.generation.sampling import SamplingParams
from modules.generation.structured_output.process import Trials

MakeRow = Callable[..., SequenceSampler]


def sampler_of(
    params: SamplingParams, prompt: Sequence[int], vocabulary: Vocabulary, trials: Trials, device: str = "cpu"
) -> SequenceSampler:
    """The sampler of a reply, with the form that `params` ask for."""
    form = trials.form(params)
    lark = form.lark if form is not None else None
    return SequenceSampler(params, prompt=prompt, vocabulary=vocabulary, device=device, lark=lark)


@pytest.fixture(scope="session")
def tokenizer(tiny_llama_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama_folder)


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Any) -> Vocabulary:
    """256 bytes and four markers."""
    return Vocabulary(tokenizer)


@pytest.fixture(scope="session")
def trials() -> Iterator[Trials]:
    """What tries the forms of replies."""
    trials = Trials("transformers", lambda text: ())
    yield trials
    trials.close()


@pytest.fixture
def row(vocabulary: Vocabulary, trials: Trials) -> MakeRow:
    """row(prompt, top_p=0.9, …): a sampler with those parameters."""

    def make(prompt: Sequence[int] = (), **sampling: Any) -> SequenceSampler:
        return sampler_of(SamplingParams(**sampling), prompt, vocabulary, trials)

    return make
