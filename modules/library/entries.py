"""What lies in a folder, entry by entry: one that cannot be read is listed with its reason, and stops no other."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, TypeVar

from modules.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def entries_of(folder: Path) -> list[Path]:
    """Everything in `folder` by name, but hidden entries and parts of downloads; empty for a folder that is not there.

    Raises UserError for one that cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(unreadable(folder, error)) from None
    return [folder / name for name in names if not name.startswith(".") and not name.endswith(".part")]


def files_of(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """(the regular files in `folder` by their names, and why other entries of it cannot be read). Hidden files are among them.

    Folders are in neither. Raises UserError for a folder that cannot be read.
    """
    files: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(unreadable(folder, error)) from None
    for name in names:
        path = folder / name
        if reason := why_not_read(path):
            reasons[name] = reason
        elif path.is_file():
            files[name] = path
    return files, reasons


def named(folder: Path, *suffixes: str) -> list[Path]:
    """The entries of `folder` that end so, or all, for a list of names.

    A folder that cannot be read is logged, and has none; so is an entry whose name is no text, and left out.
    """
    try:
        found = [path for path in entries_of(folder) if not suffixes or path.suffix in suffixes]
    except UserError as error:
        log.warning("%s", error.message)
        return []
    for path in found:
        if shown_name(path) != path.name:
            log.warning("%s", why_not_read(path))
    return [path for path in found if shown_name(path) == path.name]


def read_bytes(path: Path) -> bytes:
    """A regular file. Raises UserError that says why it cannot be read."""
    if reason := why_not_read(path):
        raise UserError(reason)
    if path.is_dir():
        raise UserError(f"{path.name} is a folder, not a file.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(unreadable(path, error)) from None


def read_text(path: Path) -> str:
    """The text of a file, as `text_of_bytes` reads it. Raises UserError."""
    try:
        return text_of_bytes(read_bytes(path))
    except UnicodeDecodeError:
        raise UserError(f"{path.name} is not text in UTF-8. Save it in UTF-8.") from None


def text_of_bytes(data: bytes) -> str:
    """A text in UTF-8, or in UTF-16 with a byte order mark. Raises UnicodeDecodeError."""
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def why_not_read(path: Path) -> str | None:
    """Why a file or folder cannot be read, in a sentence: no permission, a pipe, a link to nowhere. None where it can.

    Opens it, but waits for nothing: a pipe without a writer would never answer.
    """
    if (name := shown_name(path)) != path.name:
        how = "Rename it." if "\ufffd" in name else "Set PYTHONUTF8=1 and start again."
        return f"{name} has a name that is not {sys.getfilesystemencoding().upper()}. {how}"
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind in _KINDS:
            return f"{path.name} is {_KINDS[kind]}, not a file. Remove it."
        os.close(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)) if kind == stat.S_IFREG else _opened_folder(path))
    except OSError as error:
        return unreadable(path, error)
    return None


def shown_name(path: Path) -> str:
    """The name of `path` as text; bytes that are none are question marks."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def _opened_folder(path: Path) -> int:
    (path / ".").stat()  # names in it may be read without the right to go into it
    return os.open(path, os.O_RDONLY)


def unreadable(path: Path, error: OSError) -> str:
    """A sentence for what the system says when `path` is read."""
    if isinstance(error, PermissionError):
        what = "the folder" if _is_folder(path) else "the file"
        return f"{path.name} cannot be read: no permission. Let the user who runs this program read {what}."
    if error.errno == errno.ELOOP:
        return f"{path.name} is a link that leads back to itself. Remove it."
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"{path.name} is a link to {os.readlink(path)}, which is not there. Connect the disk it lies on, or remove the link."
    return f"{path.name} cannot be read: {error.strerror}."


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


class Patience(Generic[T]):
    """Answers about files that may lie on a disk that does not answer: each is waited for only so long.

    A thread that hangs in the system cannot be ended; its answer is taken should it ever come. Safe to use from any thread.
    """

    def __init__(self, seconds: float = 10) -> None:
        self.seconds = seconds
        self._asked: dict[Path, tuple[Future[T], float]] = {}
        self._lock = threading.Lock()

    def ask(self, path: Path, question: Callable[[], T]) -> T:
        """What `question` returns or raises. Raises UserError where it takes longer than `seconds`."""
        with self._lock:
            if path not in self._asked:
                self._asked[path] = Future(), time.monotonic() + self.seconds
                threading.Thread(target=_answer, args=(self._asked[path][0], question), name="entry", daemon=True).start()
            future, until = self._asked[path]
        try:
            answer = future.result(max(0, until - time.monotonic()))
        except TimeoutError:
            if not future.done():
                raise UserError(
                    f"{path.name} does not answer: reading it takes more than {self.seconds:g} s. Look at its disk."
                ) from None
            raise
        finally:
            if future.done():
                with self._lock:
                    self._asked.pop(path, None)
        return answer


def _answer(future: Future[T], question: Callable[[], T]) -> None:
    try:
        future.set_result(question())
    except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
        future.set_exception(error)
