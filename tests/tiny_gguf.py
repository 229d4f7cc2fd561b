"""A tiny Llama folder as a .gguf file, and LoRA adapters for it: small real files for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NORMAL, CONTROL = 1, 3


def write_gguf(folder: Path, path: Path) -> Path:
    """The model in `folder` (made by tests.tiny) as a float32 .gguf file with the same tokens, template and weights."""
    import torch
    from gguf import GGUFWriter
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(list(range(config.vocab_size)))
    special = set(tokenizer.all_special_tokens) | {"<|im_start|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    # llama.cpp wants at least one merge; this one never applies, since its result is no token.
    writer.add_token_merges(["\u0100 \u0100"])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        writer.add_tensor(_gguf_name(name), _as_llama_cpp_wants(name, weight.numpy(), config))
    _finish(writer)
    return path


def write_lora(path: Path, folder: Path, *, seed: int = 0, rank: int = 4, width: int | None = None) -> Path:
    """A .gguf LoRA with random weights for the model in `folder`; `width` makes one for a model of another size."""
    from gguf import GGUFWriter
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    width = int(width or config.hidden_size or 0)
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for layer in range(config.num_hidden_layers or 0):
        for side, shape in (("a", (rank, width)), ("b", (width, rank))):
            values = random.normal(0, 0.1, shape).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.attn_output.weight.lora_{side}", values)
    _finish(writer)
    return path


def _finish(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    parts = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.": "blk.",
        ".input_layernorm": ".attn_norm",
        ".post_attention_layernorm": ".ffn_norm",
        ".self_attn.q_proj": ".attn_q",
        ".self_attn.k_proj": ".attn_k",
        ".self_attn.v_proj": ".attn_v",
        ".self_attn.o_proj": ".attn_output",
        ".mlp.gate_proj": ".ffn_gate",
        ".mlp.up_proj": ".ffn_up",
        ".mlp.down_proj": ".ffn_down",
    }
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name


def _as_llama_cpp_wants(name: str, weight: np.ndarray, config) -> np.ndarray:
    """llama.cpp turns neighbouring pairs where transformers turns halves, so queries and keys change their order."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[key] for key in heads if key in name), None)
    if count is None:
        return weight
    rows, width = weight.shape
    return weight.reshape(count, 2, rows // count // 2, width).swapaxes(1, 2).reshape(rows, width)
