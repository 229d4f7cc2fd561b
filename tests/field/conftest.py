"""The tiny model with both loaders of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.generation.llamacpp.model import LlamacppModel
from modules.generation.llamacpp.server_config import Launch
from modules.generation.local.model import Limits, LocalModel
from modules.library.gguf_header import read_control_tokens
from tests.tiny import CHATML


@pytest.fixture(scope="module")
def local(tiny_llama_folder: Path) -> Iterator[LocalModel]:
    from transformers import AutoTokenizer, LlamaForCausalLM

    weights = LlamaForCausalLM.from_pretrained(tiny_llama_folder)
    model = LocalModel("tiny", weights, AutoTokenizer.from_pretrained(tiny_llama_folder), Limits(cache_bytes=1 << 26))
    yield model
    model.close()


@pytest.fixture(scope="module")
def llamacpp(tiny_gguf: Path) -> Iterator[LlamacppModel]:
    launch = Launch(str(tiny_gguf), "", 4096, 2, threads=1, cpu=True)
    model = LlamacppModel("tiny", launch, chat_template=CHATML, control=read_control_tokens(tiny_gguf))
    yield model
    model.close()
