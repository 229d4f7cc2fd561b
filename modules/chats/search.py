"""Small texts around a search: what SQLite is asked for, what a hit shows, and a title from a first message."""

from __future__ import annotations

import re


def matches_of(search: str) -> str:
    """`search` as one literal phrase of an FTS5 query.

    >>> matches_of('say "yes"')
    '"say ""yes\"""'
    """
    return '"' + search.replace('"', '""') + '"'


def like_pattern(search: str) -> str:
    r"""`search` anywhere in a text, for LIKE … ESCAPE '\'."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", search) + "%"


def excerpt(content: str, search: str, around: int = 40) -> str:
    """The words around the first place of `search`, on one line."""
    at = content.lower().find(search.lower())
    start = max(0, at - around)
    end = max(at, 0) + len(search) + around
    words = " ".join(content[start:end].split())
    return ("… " if start else "") + words + (" …" if end < len(content) else "")


def titled(content: str, length: int = 60) -> str:
    """A title from a first message: its first line without Markdown signs, cut at a word.

    >>> titled("# What is **love**?\\nTell me more")
    'What is love?'
    """
    lines = [line for line in (re.sub(r"[#*`>_]+", "", line).strip() for line in content.splitlines()) if line]
    line = " ".join(lines[0].split()) if lines else ""
    if len(line) <= length:
        return line
    cut = line[:length]
    return (cut[: cut.rfind(" ")] if cut.rfind(" ") > length // 2 else cut) + "…"
