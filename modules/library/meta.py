"""Convert Meta's own checkpoints of Llama 1 and 2 (consolidated.NN.pth, params.json) into an ordinary model folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.errors import Conflict, UserError
from modules.library.disk import need_space
from modules.library.json_files import read_json

if TYPE_CHECKING:
    from torch import Tensor

Say = Callable[[str], None]
SHARD = 2 << 30
"""Bytes of an output file, and so of what is in memory at a time."""


@dataclass(frozen=True)
class MetaModel:
    """A checkpoint folder: its parts in order, its parameters, and its tokenizer (beside it, or one folder up)."""

    folder: Path
    parts: tuple[Path, ...]
    params: Mapping[str, Any]
    tokenizer: Path

    @property
    def size(self) -> int:
        return sum(part.stat().st_size for part in self.parts)


def read_meta_folder(folder: Path) -> MetaModel:
    """Raises UserError where something is missing."""
    parts = tuple(sorted(folder.glob("consolidated.*.pth")))
    if not parts or not (folder / "params.json").is_file():
        raise UserError(f"{folder} is not a checkpoint of Meta's: it must hold consolidated.00.pth and params.json.")
    numbers = [int(part.name.split(".")[1]) if part.name.split(".")[1].isdigit() else -1 for part in parts]
    if numbers != list(range(len(parts))):
        raise UserError(f"{folder} is not whole: its parts are {', '.join(part.name for part in parts)}.")
    tokenizer = next(
        (place / "tokenizer.model" for place in (folder, folder.parent) if (place / "tokenizer.model").is_file()), None
    )
    if tokenizer is None:
        raise UserError(f"tokenizer.model is neither in {folder} nor one folder up: copy it there.")
    return MetaModel(folder, parts, read_json(folder / "params.json"), tokenizer)


def default_name(folder: Path) -> str:
    """llama-2-7b-chat → llama-2-7b-chat-hf; 7B → llama-7b-hf."""
    name = folder.resolve().name
    return f"{name if 'llama' in name.lower() else f'llama-{name.lower()}'}-hf"


def convert_meta(folder: Path, target: Path, *, say: Say = print) -> Path:
    """Write `folder` as the model folder `target`, which appears when it is whole.

    Weights are read with weights_only=True and mapped, not copied: what is in memory is one output file, 2 GiB.
    Raises UserError, Conflict.
    """
    model = read_meta_folder(folder)
    if target.exists():
        raise Conflict(f"{target} is there already. Remove it, or choose another --name.")
    need_space(target.parent, model.size, target.name)
    draft = target.with_name(f".{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        shapes = _write_weights(model, draft, say)
        _write_config(model, shapes, draft)
        _write_tokenizer(model.tokenizer, draft)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    say(f"{target.name} lies in {target}.")
    return target


# --- weights


@dataclass(frozen=True)
class _Shapes:
    """What the weights themselves say."""

    vocabulary: int
    feed_forward: int
    dtype: str


# Meta's name → (transformers' name, the axis along which the parts of a large model were cut; None: the same in every part)
_OUTER = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", 1),
    "norm.weight": ("model.norm.weight", None),
    "output.weight": ("lm_head.weight", 0),
}
_LAYER = {
    "attention.wq.weight": ("self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("self_attn.o_proj.weight", 1),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", 0),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", 1),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", 0),
    "attention_norm.weight": ("input_layernorm.weight", None),
    "ffn_norm.weight": ("post_attention_layernorm.weight", None),
}


def heads_of(params: Mapping[str, Any]) -> tuple[int, int]:
    """(heads of the queries, heads of keys and values); they differ with grouped-query attention (70B)."""
    heads = int(params["n_heads"])
    return heads, int(params.get("n_kv_heads") or heads)


def _write_weights(model: MetaModel, draft: Path, say: Say) -> _Shapes:
    from safetensors.torch import save_file

    parts = [_load(part) for part in model.parts]
    files: list[list[str]] = []
    batch: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        save_file(batch, draft / f"{len(files)}.safetensors", metadata={"format": "pt"})
        files.append(sorted(batch))
        batch.clear()

    size = 0
    for name, tensor in _converted(parts, model.params):
        batch[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
        if size >= SHARD:
            flush()
            size = 0
            say(f"{len(files)} files written, {total >> 20} of about {model.size >> 20} MiB …")
    if batch:
        flush()
    _name_files(draft, files, total)
    first = parts[0]
    # The embedding is whole in its rows, the feed-forward layer cut in its rows.
    vocabulary = first["tok_embeddings.weight"].shape[0]
    feed_forward = first["layers.0.feed_forward.w1.weight"].shape[0] * len(parts)
    return _Shapes(vocabulary, feed_forward, str(first["norm.weight"].dtype).removeprefix("torch."))


def _load(path: Path) -> dict[str, Tensor]:
    import pickle

    import torch

    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the older file format cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise UserError(f"{path.name} is damaged, or holds something else than weights: {str(error).splitlines()[0]}") from None


def _converted(parts: list[dict[str, Tensor]], params: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every weight under transformers' name, one after the other."""
    heads, kv_heads = heads_of(params)
    try:
        for meta, (name, axis) in _OUTER.items():
            yield name, _joined(parts, meta, axis)
        for layer in range(int(params["n_layers"])):
            for meta, (name, axis) in _LAYER.items():
                tensor = _joined(parts, f"layers.{layer}.{meta}", axis)
                if meta == "attention.wq.weight":
                    tensor = halves(tensor, heads)
                elif meta == "attention.wk.weight":
                    tensor = halves(tensor, kv_heads)
                yield f"model.layers.{layer}.{name}", tensor
    except KeyError as error:
        raise UserError(f"The checkpoint has no {error.args[0]}: it is not Llama 1 or 2.") from None


def _joined(parts: list[dict[str, Tensor]], name: str, axis: int | None) -> Tensor:
    import torch

    if axis is None or len(parts) == 1:
        return parts[0][name].clone()
    return torch.cat([part[name] for part in parts], dim=axis)


def halves(weight: Tensor, heads: int) -> Tensor:
    """Meta rotates neighbouring rows of a head by RoPE, transformers the first half with the second: [heads × head_dim, hidden]."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def _name_files(draft: Path, files: list[list[str]], total: int) -> None:
    if len(files) == 1:
        (draft / "0.safetensors").rename(draft / "model.safetensors")
        return
    places = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        (draft / f"{number}.safetensors").rename(draft / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (draft / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


# --- the files beside the weights


def _write_config(model: MetaModel, shapes: _Shapes, draft: Path) -> None:
    params = model.params
    heads, kv_heads = heads_of(params)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shapes.vocabulary,
        "hidden_size": int(params["dim"]),
        "intermediate_size": shapes.feed_forward,
        "num_hidden_layers": int(params["n_layers"]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": float(params["norm_eps"]),
        "rope_theta": float(params.get("rope_theta", 10000.0)),
        "max_position_embeddings": _context(model, shapes),
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": shapes.dtype,
    }
    (draft / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (draft / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}, indent=1) + "\n")


def _context(model: MetaModel, shapes: _Shapes) -> int:
    """params.json does not say it: 16384 for Code Llama, 4096 for Llama 2, 2048 for Llama 1, which came in float16."""
    if "rope_theta" in model.params:
        return 16384
    is_second = "n_kv_heads" in model.params or "llama-2" in model.folder.resolve().name.lower() or shapes.dtype == "bfloat16"
    return 4096 if is_second else 2048


def _write_tokenizer(sentencepiece: Path, draft: Path) -> None:
    """The fast form of tokenizer.model, which cuts text into the same tokens: each piece between markers begins with a ▁."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, decoders, normalizers, processors
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    try:
        SentencePieceProcessor(model_file=str(sentencepiece))
    except (RuntimeError, OSError):
        raise UserError(f"{sentencepiece} is not a SentencePiece model, so this is not Llama 1 or 2.") from None
    shutil.copy(sentencepiece, draft / "tokenizer.model")
    backend: Tokenizer = LlamaTokenizer.from_pretrained(draft).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None  # type: ignore[assignment]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(draft)
    # The class that reads tokenizer.json as it is, by the name that every version of transformers knows.
    config = read_json(draft / "tokenizer_config.json")
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (draft / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
