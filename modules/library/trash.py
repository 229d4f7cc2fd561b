"""What people delete or overwrite: kept as it was, so that it can be put back, and taken away for good after a while."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from modules.errors import DiskFull, NotFound, UserError
from modules.library.entries import why_not_read
from modules.library.paths import write_text

log = logging.getLogger(__name__)
DAY = 24 * 3600.0
LARGE = 64 * 1024**2
"""Bytes: what is larger is kept for KEPT_LARGE_SECONDS, because people delete it to have room."""
KEPT_SECONDS = 30 * DAY
KEPT_LARGE_SECONDS = DAY
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_GONE = "There is nothing to put back: it was put back already, or is gone for good."
_ID = re.compile(r"[0-9a-f]{1,32}-[0-9a-f]{8}$")


@lru_cache(maxsize=1)
def shipped() -> frozenset[str]:
    """The files that come with the program and can be changed on the page, as paths below its folder."""
    return frozenset((Path(__file__).parent / "shipped.txt").read_text(encoding="utf-8").split("\n")) - {""}


@dataclass(frozen=True)
class Piece:
    """A file or folder as it was. path: where; kept: where it lies now, None where there was nothing."""

    path: Path
    kept: Path | None


@dataclass(frozen=True)
class Kept:
    """One thing that was deleted or overwritten. note: what else goes back with it; shipped: it came with the program; size in bytes."""

    id: str
    owner: str
    kind: str
    name: str
    at: float
    size: int
    pieces: tuple[Piece, ...]
    note: Mapping[str, Any]
    shipped: bool = False

    @property
    def overwritten(self) -> bool:
        """Something else lies in its place."""
        return any(piece.path.exists() for piece in self.pieces if piece.kept)


@dataclass
class Undo:
    """What a change can be taken back by. id: None where it deleted and overwrote nothing. Both are known when the change is made."""

    note: dict[str, Any] = field(default_factory=dict)
    made: list[Path] = field(default_factory=list)
    """Files that the change made in new places: they go when it is taken back."""
    id: str | None = None


class Trash:
    """One folder with an entry for each change. Safe to use from any thread.

    root: the folder of the program; paths below it are kept relative to it, so that both may move.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self._root = root
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._closed = False

    @contextmanager
    def undoable(self, owner: str, kind: str, name: str, paths: Iterable[Path]) -> Iterator[Undo]:
        """Around what deletes or overwrites `paths`: files are copied before, folders are moved away.

        Where the change fails everything is as it was. kind, name: what people call it. Raises DiskFull, and UserError for what
        cannot be read.
        """
        with self._lock:
            kept = self._planned(owner, kind, name, paths)
            undo = Undo()
            if not kept.pieces:
                yield undo
                return
            try:
                self._write(kept)
                for piece in kept.pieces:
                    _take(piece)
            except OSError as error:
                self._leave(kept)
                if error.errno not in _NO_ROOM:
                    raise
                if not all(piece.path.is_dir() for piece in kept.pieces):
                    raise DiskFull(self.folder) from error
                for piece in kept.pieces:  # a folder is deleted to have room: there is none to keep it
                    shutil.rmtree(piece.path)
                yield undo
                return
            try:
                yield undo
            except BaseException:
                self._take_back(kept)
                raise
            if all(piece.kept and _same(piece.kept, piece.path) for piece in kept.pieces):
                self._forget(kept)
                return
            made = tuple(Piece(path, None) for path in undo.made if path not in {piece.path for piece in kept.pieces})
            if made or undo.note:
                self._write(replace(kept, pieces=(*kept.pieces, *made), note=undo.note))
            undo.id = kept.id
        self.sweep()

    def all(self, owner: str) -> list[Kept]:
        """What `owner` deleted and overwrote, the newest first."""
        return [kept for kept in self._entries() if kept.owner == owner]

    def get(self, owner: str, id_: str) -> Kept:
        """Raises NotFound, for what others deleted too."""
        kept = self._read(id_) if _ID.match(id_) else None
        if kept is None or kept.owner != owner:
            raise NotFound(_GONE)
        return kept

    def restore(self, owner: str, id_: str, note: Mapping[str, Any] | None = None, replaced: Collection[Path] = ()) -> Kept:
        """Put it back as it was. What lies there now is kept in its stead, with `note`, and can be put back in turn. Raises NotFound.

        replaced: files of the same thing that came meanwhile; they go, too.
        """
        with self._lock:
            kept = self.get(owner, id_)
            back = {piece.path: piece.kept for piece in kept.pieces}
            if any(source and not os.path.lexists(source) for source in back.values()):
                raise NotFound(_GONE)
            with self.undoable(owner, kept.kind, kept.name, [*back, *replaced]) as undo:
                undo.note = dict(note or {})
                undo.made = [path for path, source in back.items() if source]
                for path in {*replaced, *back}:
                    if source := back.get(path):
                        _put(source, path)
                    else:
                        _clear(path)
            self._forget(kept)
            return kept

    def forget(self, owner: str, id_: str) -> None:
        """Take it away for good. Raises NotFound."""
        with self._lock:
            self._forget(self.get(owner, id_))

    def sweep(self) -> None:
        """Take away what was kept long enough. The first version of what came with the program stays."""
        with self._lock:
            first: set[Path] = set()
            later: list[float] = []
            now = time.time()
            for kept in reversed(self._entries()):
                own = {piece.path for piece in kept.pieces if piece.kept}
                over = kept.at + (KEPT_LARGE_SECONDS if kept.size > LARGE else KEPT_SECONDS)
                if kept.shipped and not own <= first:
                    first |= own
                elif over < now:
                    self._forget(kept)
                elif kept.size > LARGE:
                    later.append(over - now)
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
            if later and not self._closed:
                self._timer = threading.Timer(min(later) + 1, self.sweep)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()

    # --- inside

    def _planned(self, owner: str, kind: str, name: str, paths: Iterable[Path]) -> Kept:
        """The entry of a change, with what there is of `paths`."""
        there = [path for path in dict.fromkeys(paths) if os.path.lexists(path)]
        for path in there:
            if not (path.is_symlink() or path.is_dir()) and (reason := why_not_read(path)):
                raise UserError(reason)
        id_ = f"{time.time_ns():x}-{secrets.token_hex(4)}"
        entry = self.folder / id_
        entry.mkdir(parents=True, exist_ok=True, mode=0o700)
        device = entry.stat().st_dev
        pieces = []
        for number, path in enumerate(there):
            elsewhere = path.is_dir() and not path.is_symlink() and path.stat().st_dev != device
            # A folder may be too large to be copied to another disk.
            pieces.append(Piece(path, path.with_name(f".{id_}.deleted") if elsewhere else entry / str(number)))
        if not pieces:
            entry.rmdir()
        size = sum(_size(piece.path) for piece in pieces)
        return Kept(id_, owner, kind, name, time.time(), size, tuple(pieces), {})

    def _write(self, kept: Kept) -> None:
        told = {
            **{key: getattr(kept, key) for key in ("owner", "kind", "name", "at", "size", "note")},
            "pieces": [[self._told(piece.path), self._told(piece.kept) if piece.kept else None] for piece in kept.pieces],
        }
        write_text(self.folder / kept.id / "entry.json", json.dumps(told, ensure_ascii=False), mode=0o600)

    def _leave(self, kept: Kept) -> None:
        """Nothing was changed, because not all of it could be kept: folders go back, and of files there may be half a copy."""
        for piece in kept.pieces:
            if piece.kept and piece.kept.is_dir() and not os.path.lexists(piece.path):
                piece.kept.rename(piece.path)
        shutil.rmtree(self.folder / kept.id, ignore_errors=True)

    def _take_back(self, kept: Kept) -> None:
        """A change that failed: what it took and changed is as it was."""
        for piece in kept.pieces:
            if piece.kept and os.path.lexists(piece.kept) and not _same(piece.kept, piece.path):
                _put(piece.kept, piece.path)
        shutil.rmtree(self.folder / kept.id, ignore_errors=True)

    def _told(self, path: Path) -> str:
        path = path.absolute()
        root = self._root.absolute()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def _entries(self) -> list[Kept]:
        names = sorted((path.name for path in self.folder.glob("*-*")), reverse=True) if self.folder.is_dir() else []
        return [kept for name in names if _ID.match(name) and (kept := self._read(name))]

    def _read(self, id_: str) -> Kept | None:
        """None for what is no entry, or a damaged one."""
        try:
            told = json.loads((self.folder / id_ / "entry.json").read_text(encoding="utf-8"))
            pieces = tuple(
                Piece(self._root / path, self._root / kept if kept is not None else None) for path, kept in told["pieces"]
            )
            return Kept(
                id_,
                str(told["owner"]),
                str(told["kind"]),
                str(told["name"]),
                float(told["at"]),
                int(told["size"]),
                pieces,
                dict(told["note"]),
                shipped=any(path in shipped() for path, kept in told["pieces"] if kept is not None),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            log.warning("%s cannot be read: what lies there can be put back by hand alone.", self.folder / id_)
            return None

    def _forget(self, kept: Kept) -> None:
        for piece in kept.pieces:
            if piece.kept and piece.kept.parent != self.folder / kept.id:
                shutil.rmtree(piece.kept, ignore_errors=True)
        shutil.rmtree(self.folder / kept.id, ignore_errors=True)


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _take(piece: Piece) -> None:
    """Keep a file as a copy, a folder by its new name."""
    assert piece.kept is not None
    if piece.path.is_dir() and not piece.path.is_symlink():
        piece.path.rename(piece.kept)
    else:
        shutil.copy2(piece.path, piece.kept, follow_symlinks=False)


def _put(kept: Path, path: Path) -> None:
    """The same the other way, in place of what is there: that stays until a file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kept.is_dir() and not kept.is_symlink():
        _clear(path)
        kept.rename(path)
        return
    draft = path.with_name(f".{path.name[:40]}.back")
    draft.unlink(missing_ok=True)
    try:
        shutil.copy2(kept, draft, follow_symlinks=False)
        if path.is_dir() and not path.is_symlink():
            _clear(path)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    """Whether both are files with the same bytes."""
    if not (one.is_file() and other.is_file()) or one.stat().st_size != other.stat().st_size:
        return False
    return one.read_bytes() == other.read_bytes()


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
