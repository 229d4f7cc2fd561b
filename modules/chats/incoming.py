"""A file of chats, whatever program wrote it: the chats in it, and for each entry that is none its place and the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from modules.chats.archive import Archive
from modules.chats.contents import Files
from modules.chats.entries import Entry, entries_of
from modules.chats.formats import chatgpt, claude, lmstudio, markdown, openai, openwebui, ours, pairs, sharegpt, sillytavern
from modules.chats.portable import PortableChat
from modules.chats.remarks import Remark, Unreadable
from modules.errors import UserError

LARGEST_FILE = 100 * 1024 * 1024
LARGEST_ARCHIVE = 1024**3
"""Bytes, packed and unpacked."""
MOST_FILES = 50_000
MOST_CHATS = 20_000
MOST_MESSAGES = 1_000_000
LONGEST = 100_000
"""Messages of one chat."""
_ALONE = (ours, claude, lmstudio, openwebui, openai, sharegpt, pairs)
_KNOWN_FILES = (".json", ".jsonl", ".md", ".markdown", ".txt")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".dat")


@dataclass(frozen=True)
class LeftOut:
    """An entry of a file that is no chat, or none that can be read. file: its name, in an archive.

    number: its place there, from 1; 0 where it is the whole file.
    """

    number: int
    title: str
    why: Remark
    file: str = ""


@dataclass(frozen=True)
class Found:
    """A chat of a file. number and file as in LeftOut."""

    chat: PortableChat
    number: int = 1
    file: str = ""


@dataclass
class Incoming:
    """What a file brings, each in the order of the file."""

    found: list[Found] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def chats(self) -> list[PortableChat]:
        return [found.chat for found in self.found]


def read_upload(file: BinaryIO) -> Incoming:
    """What somebody sent: a file of chats, or a zip archive with such files in it. Raises UserError for what holds no chat at all."""
    start = file.read(4)
    file.seek(0)
    if start == b"PK\3\4":
        return _read_archive(file)
    return read_file(file.read(LARGEST_FILE + 1))


def read_file(data: bytes) -> Incoming:
    """The chats in a file. Raises Unreadable where the file is none of chats, or the only chat in it is broken."""
    incoming = _read_text(_decoded(data), {})
    if not incoming.found and not incoming.left_out:
        raise Unreadable("nothing")
    if not incoming.found and len(incoming.left_out) == 1:
        why = incoming.left_out[0].why
        raise Unreadable("unknown" if why.code == "form" else why.code, **why.values)
    return incoming


def _decoded(data: bytes) -> str:
    if len(data) > LARGEST_FILE:
        raise Unreadable("large", most=LARGEST_FILE // 1024**2)
    encoding = json.detect_encoding(data)
    if encoding.startswith("utf-8"):
        text = data.decode(encoding, "surrogateescape")
        if text and _strange(text[:1000]) > 0.3:
            raise Unreadable("encoding")
    else:
        width = 4 if encoding.startswith("utf-32") else 2
        try:
            text = data[: len(data) // width * width].decode(encoding, "surrogatepass")
        except UnicodeDecodeError:
            raise Unreadable("encoding") from None
    if not text.strip():
        raise Unreadable("void")
    return text.removeprefix("\ufeff")


def _strange(text: str) -> float:
    """The share of bytes that are no UTF-8."""
    return sum(1 for character in text if "\udc80" <= character <= "\udcff") / len(text)


def _read_text(text: str, files: Files) -> Incoming:
    if text.lstrip()[:1] not in "{[" and markdown.fits(text):
        return _read_all([Entry(1)], lambda entry: markdown.read(_whole(text)))
    entries = entries_of(text, _is_chat, _is_part)
    values = [entry.value for entry in entries if entry.problem is None]
    if values and (sillytavern.is_head(values[0]) or sillytavern.is_line(values[0])):
        return _of_lines(entries, sillytavern.read)
    if values and _is_message(values[0]) and not _is_chat(values[0]):
        return _of_lines(entries, _messages)
    return _read_all(entries, lambda entry: _read(entry.value, files))


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unreadable("bytes") from None
    return text


def _is_chat(value: Any) -> bool:
    return isinstance(value, dict) and (chatgpt.fits(value) or any(form.fits(value) for form in _ALONE))


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool({"role", "from"} & set(value))
        and bool({"content", "value", "tool_calls"} & set(value))
    )


def _is_part(value: Any) -> bool:
    return sillytavern.is_head(value) or sillytavern.is_line(value) or _is_message(value)


def _messages(values: Sequence[tuple[int, Any]], broken: Sequence[int] = ()) -> PortableChat:
    """A list of messages, or one on each line; as in `sillytavern.read`."""
    said = [value for _, value in values]
    form, key = (openai, "messages") if "role" in said[0] else (sharegpt, "conversations")
    chat = form.read({key: said})
    return replace(chat, remarks=(*chat.remarks, *(Remark("line", {"n": number}) for number in broken)))


def _of_lines(entries: Sequence[Entry], read: Callable[[Sequence[tuple[int, Any]], Sequence[int]], PortableChat]) -> Incoming:
    """One chat, of which each entry is a message."""
    values = [(entry.number, entry.value) for entry in entries if entry.problem is None]
    broken = [entry.number for entry in entries if entry.problem is not None]
    return _read_all([Entry(1)], lambda entry: read(values, broken))


def _read_all(entries: Sequence[Entry], read: Callable[[Entry], PortableChat]) -> Incoming:
    incoming = Incoming()
    for entry in entries:
        try:
            if entry.problem is not None:
                raise Unreadable(entry.problem.code, **entry.problem.values)
            chat = read(entry)
            if len(chat.messages) > LONGEST:
                raise Unreadable("long", n=len(chat.messages), most=LONGEST)
        except Unreadable as error:
            incoming.left_out.append(LeftOut(entry.number, entry.title, error.remark))
            continue
        incoming.found.append(Found(chat, entry.number))
    _check_size(incoming)
    return incoming


def _check_size(incoming: Incoming) -> None:
    chats, messages = len(incoming.found), sum(len(chat.messages) for chat in incoming.chats)
    if chats > MOST_CHATS or messages > MOST_MESSAGES:
        raise Unreadable("many", chats=chats, messages=messages, most_chats=MOST_CHATS, most_messages=MOST_MESSAGES)


def _read(value: Any, files: Files) -> PortableChat:
    """Raises Unreadable."""
    if chatgpt.fits(value):
        return chatgpt.read(value, files)
    for form in _ALONE:
        if form.fits(value):
            return form.read(value)
    if isinstance(value, list):
        if value and all(sillytavern.is_line(item) or sillytavern.is_head(item) for item in value):
            return sillytavern.read(list(enumerate(value, 1)))
        if value and all(_is_message(item) for item in value):
            return _messages(list(enumerate(value, 1)))
    raise Unreadable("form")


# --- archives


def _read_archive(file: BinaryIO) -> Incoming:
    archive = Archive(file, most_files=MOST_FILES, largest=LARGEST_ARCHIVE)
    files = _Pictures(archive)
    incoming = Incoming()
    for name in _members(archive):
        try:
            part = _read_text(_decoded(archive.read(name, LARGEST_FILE)), files)
        except Unreadable as error:
            incoming.left_out.append(LeftOut(0, "", error.remark, name))
            continue
        except UserError:  # the member is damaged or too large
            incoming.left_out.append(LeftOut(0, "", Remark("damaged"), name))
            continue
        incoming.found += [replace(found, file=name) for found in part.found]
        incoming.left_out += [replace(left_out, file=name) for left_out in part.left_out]
    _check_size(incoming)
    if not incoming.found and not incoming.left_out:
        raise Unreadable("archive")
    return incoming


def _members(archive: Archive) -> Iterator[str]:
    """The exports of ChatGPT and Claude hold more than chats, and so does that of the Session tab."""
    names = [name for name in archive if not PurePosixPath(name).name.startswith(".") and "__MACOSX" not in name]
    exported = [name for name in names if re.fullmatch(r"conversations([-_]?\d+)?\.json", PurePosixPath(name).name)]
    own = [name for name in names if PurePosixPath(name).parent.name == "chats" and name.endswith(".json")]
    others = [name for name in names if name.lower().endswith(_KNOWN_FILES)]
    yield from sorted(exported) or own or others


class _Pictures(Files):
    """The pictures of an archive, by what stands before the second mark in their names: file-ID-photo.png, file_ID-….png."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._names = {id_: name for name in archive if (id_ := _id_of(name)) and name.lower().endswith(_PICTURES)}

    def __getitem__(self, key: str) -> bytes:
        try:
            return self._archive.read(self._names[key], LARGEST_FILE)
        except UserError:
            return b""

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _id_of(path: str) -> str:
    found = re.match(r"file[-_][A-Za-z0-9]+", PurePosixPath(path).name)
    return found[0] if found else ""
