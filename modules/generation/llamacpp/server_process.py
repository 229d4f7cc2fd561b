"""The process that holds llama.cpp: `python -m modules.generation.llamacpp.server_process`, with a Launch as JSON on its input.

A process of its own, because xllamacpp keeps Python's lock while it loads (the page would stand still for minutes),
because a fault in native code then costs one model and not the server, and because its end gives all memory back.
It ends when its input does: also when the parent was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from modules.generation.llamacpp.server_config import CacheSize, Launch, free_memory, size_cache

CPU_BATCH, GPU_BATCH = 128, 512
LOG_SECONDS = 0.5


def main() -> None:
    launch = Launch(**json.loads(sys.stdin.readline()))
    xllamacpp: Any = import_module("xllamacpp")  # its compiled part has no types
    free = _free_on_gpus(xllamacpp) if not launch.cpu and launch.gpu_layers != 0 else 0
    size = size_cache(launch, free or free_memory())
    if size is None:
        _say({"problem": "There is not enough free memory for this model."})
        return
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, launch, size, on_gpu=free > 0))
    except RuntimeError as error:
        # llama.cpp writes its log, which has the reason, from a thread of its own that nothing can wait for.
        time.sleep(LOG_SECONDS)
        _say({"problem": str(error)})
        return
    _say({"context": size.context, "pool": size.pool, "gpu": free > 0})
    sys.stdin.read()
    # The parent does this too, unless it was killed.
    shutil.rmtree(Path(launch.socket).parent, ignore_errors=True)
    # Ending at once also stops what is being computed; the destructor would wait for it.
    os._exit(0 if server else 1)


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _free_on_gpus(xllamacpp: Any) -> int:
    """Free bytes on all graphics cards together; 0 where there is none."""
    kinds = xllamacpp.ggml_backend_dev_type
    on_card = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return sum(device["memory_free"] for device in xllamacpp.get_device_info() if device["type"] in on_card)


def _parameters(xllamacpp: Any, launch: Launch, size: CacheSize, *, on_gpu: bool) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = launch.model
    parameters.hostnames = [launch.socket]
    parameters.ui = False
    # Conversations are rendered on our side. A template of the file that llama.cpp cannot read would keep it from starting.
    parameters.chat_template = "chatml"
    parameters.verbosity = 3 if launch.verbose else 1
    parameters.n_parallel = launch.parallel
    parameters.n_ctx = size.pool
    parameters.kv_unified = True
    # Idle replies stay in the cache until their room is needed: the next turn of a chat then only reads what is new.
    parameters.cache_idle_slots = False
    # What llama.cpp keeps of prompts outside its slots, it finds again by their tokens alone: computed with whatever adapter.
    parameters.cache_ram_mib = 0 if launch.adapters else min(2048, free_memory() // 8 >> 20)
    threads = launch.threads or os.cpu_count() or 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    # A prompt is read in pieces of this size; between them others get their tokens, and Stop is noticed.
    batch = launch.batch or (GPU_BATCH if on_gpu else CPU_BATCH)
    parameters.n_batch, parameters.n_ubatch = batch, min(batch, GPU_BATCH)
    parameters.n_gpu_layers = launch.gpu_layers if on_gpu else 0
    kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{launch.cache_type.upper()}")
    parameters.cache_type_k = parameters.cache_type_v = kind
    switch = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}[launch.flash_attention]
    parameters.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{switch}")
    mode = {(True, False): "MMAP", (True, True): "MMAP_MLOCK", (False, False): "NONE", (False, True): "MLOCK"}
    parameters.load_mode = getattr(xllamacpp.llama_load_mode, f"LLAMA_LOAD_MODE_{mode[launch.mmap, launch.mlock]}")
    parameters.rope_freq_scale = launch.rope_freq_scale
    parameters.rope_freq_base = launch.rope_freq_base
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in launch.adapters]
    parameters.lora_init_without_apply = True
    if launch.embeddings:
        parameters.embedding = True
        parameters.n_ubatch = parameters.n_batch = size.pool
        if launch.pooling_mean:
            parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return parameters


if __name__ == "__main__":
    main()
