"""GGUF files through llama.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modules.errors import UserError
from modules.generation.context_overflow import DEFAULT_CONTEXT
from modules.library.gguf_header import bytes_per_element, read_control_tokens, read_gguf_header
from modules.library.model_spec import ModelSpec
from modules.loaders.options import LoadOptions

if TYPE_CHECKING:
    from modules.generation.llamacpp.model import LlamacppModel
    from modules.loaders.choose import Report

GIB = 1 << 30


def why_not(spec: ModelSpec, options: LoadOptions) -> str | None:
    if spec.format != "gguf":
        return f"{spec.name} is not a .gguf file, and llama.cpp reads no others. Choose the loader transformers, or auto."
    return None


def load(spec: ModelSpec, options: LoadOptions, report: Report) -> LlamacppModel:
    from modules.generation.llamacpp.model import LlamacppModel
    from modules.generation.llamacpp.server_config import Launch

    header = read_gguf_header(spec.path)
    trained = spec.context_length or DEFAULT_CONTEXT
    wanted = options.ctx_size or trained
    if wanted > trained:
        report(f"{spec.name} was made for {trained} tokens, and llama.cpp goes no further; {wanted} were asked for.")
    launch = Launch(
        model=str(spec.path),
        socket="",
        context=min(wanted, trained),
        parallel=options.max_parallel,
        weights_bytes=spec.size_bytes,
        bytes_per_token=cache_bytes_per_token(spec, options.cache_type),
        cache_bytes=int(options.cache_memory * GIB),
        cpu=options.cpu,
        threads=options.threads,
        batch=options.prefill_chunk,
        gpu_layers=options.gpu_layers,
        cache_type=options.cache_type,
        flash_attention=options.flash_attention,
        mmap=not options.no_mmap,
        mlock=options.mlock,
        rope_freq_scale=1 / options.compress_pos_emb if options.compress_pos_emb != 1 else 0.0,
        rope_freq_base=_stretched_base(spec, header.of_architecture("rope.freq_base"), options.alpha_value),
        pooling_mean=not header.of_architecture("pooling_type"),
    )
    if launch.flash_attention == "off" and launch.cache_type not in ("f16", "bf16", "f32"):
        raise UserError("llama.cpp needs flash attention for a quantised cache.", param="flash_attention")
    report(f"Loading {spec.name}")
    model = LlamacppModel(spec.name, launch, chat_template=spec.chat_template, control=read_control_tokens(spec.path))
    if model.context_length < min(wanted, trained):
        report(f"Memory is short: the context is {model.context_length} tokens instead of {min(wanted, trained)}.")
    return model


def cache_bytes_per_token(spec: ModelSpec, cache_type: str) -> float:
    """Bytes of the key–value cache for one token; 0 where the file does not say."""
    if spec.shape is None:
        return 0.0
    return 2 * spec.shape.layers * spec.shape.kv_heads * spec.shape.head_dim * bytes_per_element(cache_type)


def _stretched_base(spec: ModelSpec, base: float | None, alpha: float) -> float:
    """RoPE's base for NTK scaling by `alpha`; 0 leaves the file's own."""
    if alpha == 1 or spec.shape is None:
        return 0.0
    return (base or 10_000.0) * alpha ** (spec.shape.head_dim / (spec.shape.head_dim - 2))
