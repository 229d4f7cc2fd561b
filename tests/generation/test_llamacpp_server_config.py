"""How large llama.cpp's cache becomes."""

from __future__ import annotations

from modules.generation.llamacpp.server_config import CacheSize, Launch, free_memory, size_cache

GIB = 1 << 30


def launch(**changes) -> Launch:
    return Launch(**{"model": "", "socket": "", "context": 8192, "parallel": 8, "bytes_per_token": 1024.0, **changes})


def test_one_full_context_is_shared_and_every_reply_has_2048_tokens() -> None:
    assert size_cache(launch(), 100 * GIB) == CacheSize(8192, 16384)
    assert size_cache(launch(parallel=2), 100 * GIB) == CacheSize(8192, 8192)
    assert size_cache(launch(context=512), 100 * GIB) == CacheSize(512, 4096)


def test_short_memory_makes_the_context_smaller() -> None:
    assert size_cache(launch(weights_bytes=GIB), GIB + 5 * 1024 * 1024) == CacheSize(4096, 4096)
    assert size_cache(launch(weights_bytes=GIB), GIB) is None


def test_a_limit_on_the_cache_is_used_in_full() -> None:
    assert size_cache(launch(cache_bytes=32 << 20), 100 * GIB) == CacheSize(8192, 32768)
    assert size_cache(launch(cache_bytes=4 << 20), 100 * GIB) == CacheSize(4096, 4096)
    assert size_cache(launch(cache_bytes=GIB), 100 * GIB) == CacheSize(8192, 8 * 8192)


def test_an_unknown_shape_takes_what_was_asked_for() -> None:
    assert size_cache(launch(bytes_per_token=0.0), GIB) == CacheSize(8192, 16384)


def test_this_machine_has_free_memory() -> None:
    assert free_memory() > 1 << 20
