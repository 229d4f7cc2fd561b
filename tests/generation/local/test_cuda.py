"""Captured decode steps give the scores of plain ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modules.generation.local.kv_cache import Piece
from modules.generation.local.model import Limits, LocalModel
from tests.generation.local.conftest import greedy, tokens_of
from tests.generation.local.test_rows import some_prompt

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("key_heads", [1, 2, 8])
def test_captured_steps_give_the_scores_of_plain_ones(key_heads: int, tiny_tokenizer: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=key_heads,
        max_position_embeddings=2048,
    )
    llama: Any = LlamaForCausalLM(config)
    model = LocalModel("tiny", llama.to("cuda", torch.bfloat16), tiny_tokenizer, Limits(cache_bytes=1 << 28))
    compute: Any = model._runner
    assert compute.graphs is not None

    @torch.inference_mode()
    def compare() -> None:
        prompts = [some_prompt(length, length) for length in (3, 130, 1000)]
        stores = [compute.new_store(2048) for _ in prompts]
        for store, prompt in zip(stores, prompts, strict=True):
            compute.logits([Piece(store, 0, len(prompt))], prompt, [len(prompt) - 1], [None])
        for step in range(3):
            pieces = [Piece(store, len(prompt) + step, 1) for store, prompt in zip(stores, prompts, strict=True)]
            captured = compute.logits(pieces, [step, 5, 6], [0, 1, 2], []).float().clone()
            graphs, compute.graphs = compute.graphs, None
            plain = compute.logits(pieces, [step, 5, 6], [0, 1, 2], []).float()
            compute.graphs = graphs
            assert (captured - plain).norm() < 0.02 * plain.norm()

    try:
        model._loop.call(compare)
        assert len(tokens_of(model.stream(greedy(some_prompt(20), 300)))) > 0
    finally:
        model.close()
