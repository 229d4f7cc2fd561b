"""Flags of July 2023 that no longer do anything here: accepted, so that old commands work, and explained."""

from __future__ import annotations

from modules.settings.command_line import RetiredFlag

_QUANTISED = "is not needed: the model's files say how it was quantised."
_GONE = "has no effect: that engine is not supported any more; models load with transformers, GPTQModel or llama.cpp."
_FASTEST = "has no effect: the fastest way that fits this machine is chosen."

RETIRED: dict[str, RetiredFlag] = {
    "model_menu": RetiredFlag("has no effect: choose a model on the Models tab."),
    "multi_user": RetiredFlag("is not needed: several people can always use the page at once."),
    "extensions": RetiredFlag("has no effect: extensions of other programs cannot run here.", "many"),
    "character": RetiredFlag("has no effect: choose a character on the page.", 1),
    "no_cache": RetiredFlag("has no effect: the key-value cache is what makes replies quick, and its memory is bounded."),
    "xformers": RetiredFlag(_FASTEST),
    "sdp_attention": RetiredFlag(_FASTEST),
    "low_vram": RetiredFlag("has no effect: use --gpu-layers to keep layers off the GPU."),
    "cache_capacity": RetiredFlag("has no effect: use --cache-memory.", 1),
    "llama_cpp_seed": RetiredFlag("has no effect: every request has its own seed (--seed).", 1),
    "n_gqa": RetiredFlag(_QUANTISED, 1),
    "rms_norm_eps": RetiredFlag(_QUANTISED, 1),
    "wbits": RetiredFlag(_QUANTISED, 1),
    "groupsize": RetiredFlag(_QUANTISED, 1),
    "model_type": RetiredFlag(_QUANTISED, 1),
    "checkpoint": RetiredFlag("is not needed: the weights file in the model's folder is found by itself.", 1),
    "desc_act": RetiredFlag(_QUANTISED),
    "pre_layer": RetiredFlag("has no effect: use --gpu-memory to keep layers off the GPU.", "many"),
    "monkey_patch": RetiredFlag("is not needed: adapters work with GPTQ models."),
    "quant_attn": RetiredFlag(_FASTEST),
    "warmup_autotune": RetiredFlag(_FASTEST),
    "fused_mlp": RetiredFlag(_FASTEST),
    "triton": RetiredFlag(_FASTEST),
    "no_inject_fused_attention": RetiredFlag(_FASTEST),
    "no_inject_fused_mlp": RetiredFlag(_FASTEST),
    "no_use_cuda_fp16": RetiredFlag(_FASTEST),
    "gptq_for_llama": RetiredFlag("is not needed: GPTQ models load with GPTQModel."),
    "autogptq": RetiredFlag("is not needed: GPTQ models load with GPTQModel, AutoGPTQ's successor."),
    "flexgen": RetiredFlag(_GONE),
    "percent": RetiredFlag(_GONE, 6),
    "compress_weight": RetiredFlag(_GONE),
    "pin_weight": RetiredFlag(_GONE, 1),
    "deepspeed": RetiredFlag("has no effect for chatting: use --auto-devices, or --loader vllm for several GPUs."),
    "nvme_offload_dir": RetiredFlag("has no effect: use --disk and --disk-cache-dir.", 1),
    "local_rank": RetiredFlag("has no effect: one process serves the page.", 1),
    "rwkv_strategy": RetiredFlag(_GONE, 1),
    "rwkv_cuda_on": RetiredFlag(_GONE),
    "public_api": RetiredFlag("is not needed: --share covers the API too."),
    "multimodal_pipeline": RetiredFlag("is not needed: models that see are recognised by their files.", 1),
}
