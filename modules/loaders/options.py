"""What the loaders need to know: declared once, for the command line, the Models tab and the saved settings of a model."""

from __future__ import annotations

import logging
from typing import Any, Literal

from pydantic import field_validator, model_validator

from modules.settings.declare import Settings, former_names, setting

log = logging.getLogger(__name__)

LoaderName = Literal["auto", "transformers", "bitsandbytes", "gptq", "llamacpp", "remote", "vllm"]
LOCAL = ("transformers", "bitsandbytes", "gptq")
OLD_NAMES: dict[str, LoaderName] = {
    "autogptq": "gptq",
    "gptq-for-llama": "gptq",
    "exllama": "gptq",
    "exllama_hf": "gptq",
    "exllamav2": "gptq",
    "exllamav2_hf": "gptq",
    "gptqmodel": "gptq",
    "llama.cpp": "llamacpp",
    "llamacpp_hf": "llamacpp",
}
"""Loaders as people know them from other programs, and what does their work here."""


class LoadOptions(Settings):
    """How to load a model. `loaders` of each field says who uses it; none means all."""

    loader: LoaderName = setting("auto", group="Loader")
    """What loads the model; auto looks at the files."""
    ctx_size: int = setting(0, min=0, max=10_000_000, step=256, group="Loader", aliases=["n_ctx", "max_seq_len"])
    """The most tokens that a prompt and its reply may have together; 0 takes what the model was made for, as far as memory allows."""
    max_parallel: int = setting(8, min=1, max=512, step=1, slider_max=64, group="Loader")
    """How many replies are made at the same time; more requests wait in order."""
    cache_memory: float = setting(0.0, min=0, max=10_000, group="Loader", loaders=LOCAL + ("llamacpp",))
    """The most GiB for the key-value cache; 0 decides by the memory that is free."""

    # --- where and how the weights lie
    cpu: bool = setting(False, group="Device", loaders=LOCAL + ("llamacpp",))
    """Use the processor even where there is a GPU."""
    threads: int = setting(0, min=0, max=1024, step=1, slider_max=64, group="Device", loaders=LOCAL + ("llamacpp",))
    """Processor threads; 0 takes the number of cores."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting("auto", group="Device", loaders=LOCAL + ("vllm",))
    """Number format of the weights; auto takes the files' own, and one that is fast on this machine."""
    bf16: bool = setting(False, group="Device", loaders=LOCAL)
    """The same as --dtype bfloat16."""
    auto_devices: bool = setting(False, group="Device", loaders=LOCAL)
    """Spread the layers over GPUs, memory and disk as they fit."""
    gpu_memory: tuple[str, ...] = setting((), group="Device", loaders=LOCAL, aliases=["gpu_split"])
    """The most memory for weights on each GPU: "10" is GiB, "3500MiB" is what it says; one value for each GPU."""
    cpu_memory: str = setting("", group="Device", loaders=LOCAL)
    """The most main memory for weights, in the same form; empty sets no limit."""
    disk: bool = setting(False, group="Device", loaders=LOCAL)
    """Put layers that fit nowhere else on the disk (slow)."""
    disk_cache_dir: str = setting("cache", group="Device", loaders=LOCAL)
    """Where layers on the disk are kept."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = setting("auto", group="Device", loaders=LOCAL)
    """How attention is computed."""
    trust_remote_code: bool = setting(False, group="Device", loaders=LOCAL + ("vllm",))
    """Run the Python code that a model brings with it. Only for models whose code you have read."""

    # --- bitsandbytes
    load_in_8bit: bool = setting(False, group="Quantise while loading", loaders=["bitsandbytes"])
    """Quantise to 8 bits (LLM.int8) while loading."""
    load_in_4bit: bool = setting(False, group="Quantise while loading", loaders=["bitsandbytes"])
    """Quantise to 4 bits while loading, as QLoRA does."""
    quant_type: Literal["nf4", "fp4"] = setting("nf4", group="Quantise while loading", loaders=["bitsandbytes"])
    """The 4-bit number format."""
    use_double_quant: bool = setting(False, group="Quantise while loading", loaders=["bitsandbytes"])
    """Quantise the scales of 4-bit weights too: 0.4 bits per weight less."""
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", group="Quantise while loading", loaders=["bitsandbytes"]
    )
    """The number format that 4-bit weights are computed in."""

    # --- engine
    prefill_chunk: int = setting(
        0,
        min=0,
        max=65_536,
        step=16,
        slider_max=4096,
        group="Engine",
        loaders=LOCAL + ("llamacpp",),
        aliases=["n_batch"],
        former=["batch_size"],
    )
    """How many prompt tokens are read between two steps of the running replies; 0 takes 512, and 128 for llama.cpp without a GPU."""
    prompt_lookup: int = setting(0, min=0, max=32, step=1, group="Engine", loaders=LOCAL)
    """Guess this many next tokens from the text so far when only one reply runs; 0 is off. The text stays the same."""
    draft_model: str = setting("", group="Engine", loaders=LOCAL)
    """A small model of the same family that guesses ahead when only one reply runs."""

    # --- llama.cpp
    gpu_layers: int = setting(-1, min=-1, max=10_000, step=1, group="llama.cpp", loaders=["llamacpp"], aliases=["n_gpu_layers"])
    """How many layers lie on the GPU; -1 puts as many there as fit."""
    cache_type: Literal["f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = setting(
        "f16", group="llama.cpp", loaders=["llamacpp"]
    )
    """Number format of the key-value cache."""
    flash_attention: Literal["auto", "on", "off"] = setting("auto", group="llama.cpp", loaders=["llamacpp"])
    """Whether to compute attention in one fused step."""
    no_mmap: bool = setting(False, group="llama.cpp", loaders=["llamacpp"])
    """Read the whole file into memory instead of mapping it."""
    mlock: bool = setting(False, group="llama.cpp", loaders=["llamacpp"])
    """Keep the model in memory: never swap it out."""
    compress_pos_emb: float = setting(
        1.0, min=1, max=64, step=0.5, slider_max=8, group="Longer context", loaders=LOCAL + ("llamacpp",)
    )
    """Stretch the positions (linear RoPE scaling) for a context this many times longer; 1 changes nothing."""
    alpha_value: float = setting(
        1.0, min=1, max=64, step=0.05, slider_max=8, group="Longer context", loaders=LOCAL + ("llamacpp",)
    )
    """Stretch RoPE's base (NTK scaling) for a longer context; 1 changes nothing."""

    # --- other engines
    base_url: str = setting("", group="Remote engine", loaders=["remote"])
    """Address of an OpenAI-protocol engine, such as http://127.0.0.1:8000/v1."""
    remote_api_key: str = setting("", group="Remote engine", loaders=["remote"], secret=True)
    """The key for that engine, where it asks for one."""
    remote_model: str = setting("", group="Remote engine", loaders=["remote"])
    """The model's name on that engine; empty takes the first one that it lists."""
    tensor_parallel_size: int = setting(1, min=1, max=1024, step=1, group="vLLM", loaders=["vllm"])
    """Over how many GPUs each layer is split."""
    pipeline_parallel_size: int = setting(1, min=1, max=1024, step=1, group="vLLM", loaders=["vllm"])
    """Over how many groups of GPUs (machines, with Ray) the layers are distributed."""
    distributed_executor_backend: Literal["auto", "mp", "ray"] = setting("auto", group="vLLM", loaders=["vllm"])
    """How vLLM reaches its workers: mp on one machine, ray over several."""
    vllm_args: str = setting("", group="vLLM", loaders=["vllm"])
    """More arguments for `vllm serve`, as on its command line."""

    @model_validator(mode="before")
    @classmethod
    def _by_current_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for former, name in former_names(cls).items():
            if former in values:
                log.warning("The setting %s is called %s now.", former, name)
                values = {name: values[former], **{key: value for key, value in values.items() if key != former}}
        return values

    @field_validator("loader", mode="before")
    @classmethod
    def _by_any_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name = value.strip().lower()
        if name in OLD_NAMES:
            log.warning("The loader %s is called %s here.", value, OLD_NAMES[name])
        return OLD_NAMES.get(name, name)

    @field_validator("gpu_memory", mode="before")
    @classmethod
    def _one_value_for_each_gpu(cls, value: Any) -> Any:
        """Values may be separated by commas too, as --gpu-split wrote them."""
        words = [value] if isinstance(value, str | int | float) else value
        return tuple(part.strip() for word in words for part in str(word).split(",") if part.strip())
