"""A zip file that somebody sent: its members are counted before its list is read, and measured before they are unpacked."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from modules.errors import UserError

_END = struct.Struct("<4s4H2LH")
"""The record that closes a zip file: signature, two disks, two counts, size and place of the list, length of the comment."""
_LONGEST_COMMENT = 0xFFFF
_LOCATOR = 20
"""Bytes of what points to a larger record, in files of more than 65535 members or 4 GiB."""
_LISTED = 1024
"""Bytes that a member takes in the list, at most and on average."""


class Archive:
    """The members of a zip file. Raises UserError for what is none, and for one that holds too much."""

    def __init__(self, file: BinaryIO, *, most_files: int, largest: int) -> None:
        too_much = UserError(f"The file holds too much: {most_files} files and {largest // 1024**2} MB are the most.")
        count, size = _listed(file)
        if count > most_files or size > most_files * _LISTED:
            raise too_much
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
            raise _NO_ZIP from None
        self._entries = {entry.filename: entry for entry in self._zip.infolist() if not entry.is_dir()}
        if sum(entry.file_size for entry in self._entries.values()) > largest:
            raise too_much

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str, limit: int) -> bytes:
        """One member. Raises UserError where it is damaged, or larger than `limit`."""
        entry = self._entries[name]
        if entry.file_size > limit:
            raise UserError(f"this file is too large, {_text(limit)} are the most.")
        try:
            with self._zip.open(entry) as member:
                return member.read(limit + 1)[: entry.file_size]  # without a number all of it would be unpacked at once
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError):
            raise UserError("this file is damaged.") from None


_NO_ZIP = UserError("This is no zip file, or a damaged one.")


def _listed(file: BinaryIO) -> tuple[int, int]:
    """(how many members there are, the bytes of the list of them), without reading that list. Raises UserError."""
    length = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, length - _END.size - _LONGEST_COMMENT - _LOCATOR))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise _NO_ZIP
    if tail[max(0, at - _LOCATOR) : at].startswith(b"PK\6\7"):
        return 2**32, 0
    _, _, _, _, count, size, _, _ = _END.unpack_from(tail, at)
    if size > start + at:
        raise _NO_ZIP
    return count, size


def _text(size: int) -> str:
    return f"{size // 1024**2} MB" if size >= 1024**2 else f"{size // 1024} kB"
