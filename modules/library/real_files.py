"""Files that only bear the name of what they should be: git-lfs pointers, saved web pages, answers of a server, empty ones."""

from __future__ import annotations

from pathlib import Path

from modules.errors import UserError
from modules.library.manifest import read_manifest

_HEAD = 512
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
_FORMS = {".gguf": "not a GGUF file", ".safetensors": "not a safetensors file"}
_TEXTS = (".json", ".jinja", ".txt", ".model")
"""Endings of files that may be text; SentencePiece's is not, but old vocabularies took that ending too."""


def check_real(path: Path) -> None:
    """Raises UserError that says what `path` is in place of the file, and how to get that. Reads a few bytes."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    found = _instead(path, head)
    if found is not None:
        raise UserError(
            f"{path.name} in {path.parent.name} is {found}, {_FORMS.get(path.suffix.lower(), 'not the file itself')}. {_how_to_fetch(path, head)}"
        )


def is_real(path: Path) -> bool:
    try:
        check_real(path)
    except (UserError, OSError):
        return False
    return True


def _instead(path: Path, head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").strip()
    if not text:
        return "empty"
    if _is_pointer(head):
        return "a git-lfs pointer"
    if text.lower().startswith(_PAGES):
        return "a web page"
    if path.suffix.lower() not in _TEXTS and (said := _prose(text)):
        return f"a text ({said})"
    return None


def _is_pointer(head: bytes) -> bool:
    return head.startswith(b"version https://git-lfs.github.com/")


def _prose(text: bytes) -> str | None:
    """The beginning of what a server said, such as "Access to model X is restricted"; None for binary data."""
    try:
        line = text.decode("utf-8").splitlines()[0]
    except UnicodeDecodeError:
        return None
    return repr(line[:60]) if " " in line and line.isprintable() else None


def _how_to_fetch(path: Path, head: bytes) -> str:
    manifest = read_manifest(path.parent)
    command = f"`python download-model.py {manifest.repository if manifest else 'ORG/NAME'}`"
    if _is_pointer(head):
        return f"Run `git lfs pull` in its folder, or fetch it with {command}."
    return f"Fetch it again with {command}."
