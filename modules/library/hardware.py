"""What memory this machine has, and how much of it is free, without any heavy library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_M_ARENA_MAX = -8  # of malloc.h


@dataclass(frozen=True)
class Gpu:
    """One CUDA device; sizes in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes. In a container it is the container's share that counts."""

    memory_total: int
    memory_free: int
    gpus: tuple[Gpu, ...] = ()


def this_machine() -> Machine:
    """Asks the system: takes milliseconds, and a few tenths of a second where there are GPUs."""
    import psutil

    memory = psutil.virtual_memory()
    limit, used = _container_limit(_CGROUP)
    total = min(memory.total, limit) if limit else memory.total
    free = min(memory.available, limit - used) if limit else memory.available
    return Machine(total, max(free, 0), _gpus())


def keep_one_heap() -> None:
    """Have glibc serve all threads from one heap: of the others it never gives the end back, up to 64 MiB of each.

    To be called before there are threads. Does nothing where the C library is another one.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 1)


def _container_limit(folder: Path) -> tuple[int | None, int]:
    """(limit, bytes in use that cannot be dropped) of the control group, version 2 or 1; (None, 0) without a limit."""
    for limit_file, used_file, cache_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = (folder / limit_file).read_text().strip()
            used = int((folder / used_file).read_text())
            stat_lines = (folder / used_file).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < 1 << 60:
            statistics = dict(line.split() for line in stat_lines if len(line.split()) == 2)
            return int(limit), max(used - int(statistics.get(cache_key, 0)), 0)
    return None, 0


def _gpus() -> tuple[Gpu, ...]:
    """NVIDIA's devices that this process may use, by nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible_gpus(done.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible_gpus(listing: str, visible: str | None) -> tuple[Gpu, ...]:
    """The devices of nvidia-smi's CSV lines (index, uuid, name, MiB, MiB free) that CUDA_VISIBLE_DEVICES leaves."""
    known: dict[str, Gpu] = {}
    order: list[str] = []
    for line in listing.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 5 and fields[3].isdigit() and fields[4].isdigit():
            gpu = Gpu(fields[2], int(fields[3]) << 20, int(fields[4]) << 20)
            known |= {fields[0]: gpu, fields[1]: gpu}
            order.append(fields[0])
    wanted = order if visible is None else [part.strip() for part in visible.split(",")]
    return tuple(known[part] for part in wanted if part in known)
