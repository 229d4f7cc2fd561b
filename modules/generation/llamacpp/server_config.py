"""What llama.cpp's process is told when it starts, and how large its key–value cache becomes."""

from __future__ import annotations

import os
from dataclasses import dataclass

LEAST_CONTEXT = 256
SHARE_OF_FREE_MEMORY = 0.8
TOKENS_PER_REPLY = 2048


@dataclass(frozen=True)
class Launch:
    """Plain values, sent as JSON.

    context: the most tokens of one request; parallel: how many requests at once. 0 for threads and batch decides by the machine.
    weights_bytes and bytes_per_token (of the cache; 0 where unknown) are for the estimate of what fits.
    cache_bytes: the most for the cache; 0 decides by the free memory. adapters: paths of .gguf LoRAs.
    embeddings: make vectors instead of text; pooling_mean: by the mean over tokens, where the model does not say how.
    """

    model: str
    socket: str
    context: int
    parallel: int
    weights_bytes: int = 0
    bytes_per_token: float = 0.0
    cache_bytes: int = 0
    cpu: bool = False
    threads: int = 0
    batch: int = 0
    gpu_layers: int = -1
    cache_type: str = "f16"
    flash_attention: str = "auto"
    mmap: bool = True
    mlock: bool = False
    rope_freq_scale: float = 0.0
    rope_freq_base: float = 0.0
    adapters: tuple[str, ...] = ()
    embeddings: bool = False
    pooling_mean: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class CacheSize:
    """context: the most tokens of one request; pool: of all requests together, which share one cache."""

    context: int
    pool: int


def size_cache(launch: Launch, free_bytes: int) -> CacheSize | None:
    """What fits into `free_bytes` of the device that holds the cache; None where not even a tiny context does.

    Without a limit set, the pool has one full context, or 2,048 tokens for each reply where that is more.
    """
    room = launch.cache_bytes or int((free_bytes - launch.weights_bytes) * SHARE_OF_FREE_MEMORY)
    most = int(room / launch.bytes_per_token) if launch.bytes_per_token else launch.context * launch.parallel
    if most < LEAST_CONTEXT:
        return None
    context = min(launch.context, most)
    everybody = context * launch.parallel
    wanted = everybody if launch.cache_bytes else max(context, min(context, TOKENS_PER_REPLY) * launch.parallel)
    return CacheSize(context, min(wanted, everybody, most))


def free_memory() -> int:
    """Bytes of main memory that programs could take now."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
