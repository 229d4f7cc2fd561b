"""Where compiled kernels are kept between starts: in the user's cache, for each version of their sources."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)


def cache_folder(sources: Iterable[Path]) -> Path | None:
    """The folder for what is compiled from `sources`; None where somebody else could write there, for it is code that is run."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        above = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
        version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
        folders = (above / "textloom", above / "textloom" / "kernels", above / "textloom" / "kernels" / version)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        safe = all(_is_ours(folder) for folder in (above, *folders))
    except (OSError, RuntimeError) as error:
        log.info("compiled kernels are not kept: %s", error)
        return None
    return folders[-1] if safe else None


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can put a file there."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
