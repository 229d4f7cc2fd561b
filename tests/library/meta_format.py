"""Write a small model in Meta's own format, in one or more parts: the inverse of what download-model.py --from-meta does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

LAYER = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}
WORDS = "the a cat dog is was [INST] [/INST] <<SYS>> <</SYS>> You are helpful brief what 2 + 4 = Hello world sky blue why"
OUTER = {"model.embed_tokens": ("tok_embeddings", 1), "model.norm": ("norm", None), "lm_head": ("output", 0)}


def write_sentencepiece(path: Path) -> None:
    """A tokenizer.model with Llama's settings: byte fallback, <unk> <s> </s>, digits apart, nothing normalised."""
    import sentencepiece

    choose = random.Random(0)
    words = WORDS.split()
    corpus = path.with_name("corpus.txt")
    corpus.write_text("\n".join(" ".join(choose.choice(words) for _ in range(12)) for _ in range(400)))
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        input=str(corpus),
        model_prefix=str(path.with_suffix("")),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    corpus.unlink()
    path.with_suffix(".vocab").unlink()


def make_llama(kv_heads: int) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():  # norms of 1 would hide that one is missing
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def write_meta(model: LlamaForCausalLM, folder: Path, parts: int) -> Path:
    """consolidated.NN.pth, params.json and tokenizer.model in `folder`."""
    import torch

    config: Any = model.config
    folder.mkdir(parents=True)
    shards: list[dict[str, Tensor]] = [{} for _ in range(parts)]
    for name, weight in model.state_dict().items():
        meta, axis = _meta_name(name)
        if ".wq." in meta:
            weight = _neighbours(weight, config.num_attention_heads)
        if ".wk." in meta:
            weight = _neighbours(weight, config.num_key_value_heads)
        pieces = [weight] * parts if axis is None else weight.chunk(parts, dim=axis)
        for shard, piece in zip(shards, pieces, strict=True):
            shard[meta] = piece.clone()
    for number, shard in enumerate(shards):
        shard["rope.freqs"] = torch.zeros(8)
        torch.save(shard, folder / f"consolidated.{number:02}.pth")
    params = {
        "dim": config.hidden_size,
        "multiple_of": 64,
        "n_heads": config.num_attention_heads,
        "n_layers": 2,
        "norm_eps": 1e-05,
    }
    if config.num_key_value_heads != config.num_attention_heads:
        params["n_kv_heads"] = config.num_key_value_heads
    (folder / "params.json").write_text(json.dumps({**params, "vocab_size": -1}))
    write_sentencepiece(folder / "tokenizer.model")
    return folder


def _meta_name(name: str) -> tuple[str, int | None]:
    stem = name.removesuffix(".weight")
    if stem in OUTER:
        meta, axis = OUTER[stem]
        return f"{meta}.weight", axis
    _, _, layer, rest = stem.split(".", 3)
    meta, axis = LAYER[rest]
    return f"layers.{layer}.{meta}.weight", axis


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
