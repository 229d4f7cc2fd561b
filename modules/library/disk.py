"""Sizes for people, and whether the disk has room."""

from __future__ import annotations

import shutil
from pathlib import Path

from modules.errors import Unavailable

GIB = 1 << 30


def size_text(size: float) -> str:
    """Bytes as people read them: 93.8 MiB, 3.2 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def need_space(folder: Path, size: int, what: str) -> None:
    """Make `folder`; raises Unavailable where its disk has no room for `size` bytes (and some to breathe)."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size + (64 << 20):
        raise Unavailable(
            f"{what} needs {size_text(size)}, and the disk of {folder} has {size_text(free)} free. "
            "Make room, or choose another folder with --model-dir."
        )
