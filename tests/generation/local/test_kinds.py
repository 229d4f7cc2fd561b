"""Architectures of many kinds: each gives what generate() gives, together where it can and alone where it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modules.generation.local.model import Limits, LocalModel
from tests.generation.local.conftest import generated, greedy, tokens_of
from tests.generation.local.test_rows import finished, reply_of, some_prompt

pytestmark = pytest.mark.slow

SHAPE = {"vocab_size": 260, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
MANY = {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 1024}
ENDS = {"eos_token_id": 259, "pad_token_id": 257, "bos_token_id": 256}
# name: (configuration, its values, whether rows share a batch, whether our own layers compute them)
KINDS: dict[str, tuple[str, dict[str, Any], bool, bool]] = {
    "llama": ("LlamaConfig", {**MANY, "tie_word_embeddings": True}, True, True),
    "llama with biases": ("LlamaConfig", {**MANY, "attention_bias": True, "mlp_bias": True}, True, True),
    "llama with stretched positions": (
        "LlamaConfig",
        {**MANY, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        True,
        True,
    ),
    "mistral with a window": ("MistralConfig", {**MANY, "sliding_window": 24}, True, True),
    "qwen2": ("Qwen2Config", MANY, True, True),
    "qwen3": ("Qwen3Config", {**MANY, "head_dim": 16}, True, True),
    "phi3": ("Phi3Config", MANY, True, False),
    "gemma2 with windows and bounded scores": ("Gemma2Config", {**MANY, "head_dim": 16, "sliding_window": 24}, True, False),
    "gemma3 with windows": ("Gemma3TextConfig", {**MANY, "head_dim": 16, "sliding_window": 24}, True, False),
    "gpt-2": ("GPT2Config", {"vocab_size": 260, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 1024}, True, False),
    "gpt-neox": ("GPTNeoXConfig", {**SHAPE, "max_position_embeddings": 1024}, True, False),
    "mamba": ("MambaConfig", {"vocab_size": 260, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 8}, False, False),
    "bloom": ("BloomConfig", {"vocab_size": 260, "hidden_size": 64, "n_layer": 3, "n_head": 4}, False, False),
    "t5": (
        "T5Config",
        {
            "vocab_size": 260,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 257,
        },
        False,
        False,
    ),
}


def random_model(kind: str) -> Any:
    """A model of that kind in float64, the same each time."""
    import transformers

    name, values, *_ = KINDS[kind]
    loader = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    torch.manual_seed(5)
    model: Any = loader.from_config(getattr(transformers, name)(**values, **ENDS)).double().eval()
    for parameter in model.parameters():
        # Random small weights make all scores alike; larger ones tell apart what depends on what.
        parameter.data *= 3 if parameter.dim() > 1 else 1
    model.generation_config.eos_token_id = ENDS["eos_token_id"]
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_every_kind_gives_what_generate_gives(kind: str, tiny_tokenizer: Any) -> None:
    _, _, together, own_layers = KINDS[kind]
    reference = random_model(kind)

    def right(prompt: list[int], count: int) -> list[int]:
        return reply_of(generated(reference, prompt, count))

    model = LocalModel(
        kind, random_model(kind), tiny_tokenizer, Limits(cache_bytes=1 << 28, prefill_chunk=16, context_length=1024)
    )
    try:
        assert (model.capabilities.max_parallel > 1) == together
        assert (getattr(model._runner, "decoder", None) is not None) == own_layers
        prompts = [some_prompt(length, length) for length in (9, 70, 33)]
        streams = [model.stream(greedy(prompt, 20)) for prompt in prompts]
        replies = [tokens_of(stream) for stream in streams]
        assert replies == [right(prompt, 20) for prompt in prompts]
        turn = prompts[1] + replies[1] + some_prompt(11, 3)
        events = list(model.stream(greedy(turn, 12)))
        assert tokens_of(events) == right(turn, 12)
        branch = prompts[1][:40] + some_prompt(5, 4)
        assert tokens_of(model.stream(greedy(branch, 12))) == right(branch, 12)
        if together:
            assert finished(events).usage.cached_tokens >= 70
    finally:
        model.close()
