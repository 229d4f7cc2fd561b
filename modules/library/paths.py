"""From a name that somebody typed to a path that cannot leave its folder."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modules.errors import ReadOnly, UserError

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def safe_name(name: str, what: str = "name") -> str:
    """`name` without surrounding spaces, when it can be a file's name on every system. Raises UserError."""
    name = name.strip()
    if not name:
        raise UserError(f"The {what} is empty.", param="name")
    if len(name.encode()) > 200:
        raise UserError(f"The {what} is too long: 200 bytes at most.", param="name")
    if _FORBIDDEN.search(name) or name.startswith(".") or name.endswith(".") or name.split(".")[0].lower() in _DEVICES:
        raise UserError(
            f'{name!r} cannot be a {what}: it may not start or end with a dot, nor contain / \\ : * ? " < > |.', param="name"
        )
    return name


def file_name_for(name: str, usual: str, longest: int = 80) -> str:
    """A name for a file, on every system, for what is called `name` by people; `usual` where nothing of it can stay.

    >>> file_name_for("Zoe: a/b?", "character")
    'Zoe_ a_b_'
    """
    made = _FORBIDDEN.sub("_", name)[:longest].encode()[:180].decode(errors="ignore").strip(". ")
    if not made.strip("_ "):
        return usual
    return f"_{made}" if made.split(".")[0].lower() in _DEVICES else made


def path_inside(folder: Path, name: str, suffix: str = "", what: str = "name") -> Path:
    """folder/name+suffix, for a name that is one part of a path and nothing else. Raises UserError."""
    return folder / (safe_name(name, what) + suffix)


def folder_of(personal: Path, owner: str) -> Path:
    """The folder of one user in `personal`. The name of a login can be anything, so its folder is named by a hash."""
    return personal / hashlib.sha256(owner.encode()).hexdigest()[:24]


@contextmanager
def written_whole(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place at the end, or vanishes: nobody sees half of it. mode: who may read it.

    Raises ReadOnly where the folder may not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}-", suffix=".part", dir=path.parent)
    except OSError as error:
        raise ReadOnly(path.parent, error.strerror) if error.errno in NOT_WRITABLE else error from None
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(mode)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def why_not_written(folder: Path) -> str | None:
    """Why nothing can be saved in `folder`, or made where it will be, in a sentence; None where it can. Leaves nothing behind."""
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return ReadOnly(folder, error.strerror).message
    return None


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write `text` to `path` at once."""
    with written_whole(path, mode) as draft:
        draft.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits; reads it piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
