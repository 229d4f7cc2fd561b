"""Files that only bear the name of what they should be: git-lfs pointers, saved web pages, answers of a server, empty ones."""

from __future__ import annotations

from pathlib import Path

from modules.errors import UserError
from modules.library.manifest import read_manifest

_HEAD = 512
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
_MAY_BE_PAGES = (".html", ".htm", ".xhtml", ".xml", ".svg", ".md", ".txt")
_FORMS = {".gguf": "not a GGUF file", ".safetensors": "not a safetensors file"}
_TEXTS = (".json", ".jinja", ".txt", ".model")
"""Endings of files that may be text; SentencePiece's is not, but old vocabularies took that ending too."""


def check_real(path: Path) -> None:
    """Raises UserError where `path` is something else than the file that its name says."""
    if problem := what_instead(path):
        raise UserError(problem)


def is_page(path: Path) -> bool:
    """Whether a file that should hold something else begins like a web page."""
    if path.suffix.lower() in _MAY_BE_PAGES:
        return False
    with path.open("rb") as file:
        return _text(file.read(_HEAD)).lower().startswith(_PAGES)


def what_instead(path: Path) -> str | None:
    """What `path` is in place of the file, and how to get that, in a sentence; None for the file itself. Reads a few bytes."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    found = _instead(path, head)
    if found is None:
        return None
    form = _FORMS.get(path.suffix.lower(), "not the file itself")
    return f"{path.name} in {path.parent.name} is {found}, {form}. {_how_to_fetch(path, head)}"


def _instead(path: Path, head: bytes) -> str | None:
    text = _text(head)
    if not text:
        return "empty"
    if _is_pointer(head):
        return "a git-lfs pointer"
    if text.lower().startswith(_PAGES):
        return "a web page"
    if path.suffix.lower() not in _TEXTS and (said := _prose(text)):
        return f"a text ({said})"
    return None


def _text(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").strip()


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
