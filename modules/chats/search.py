"""Small texts around a search: what SQLite is asked for, what a hit shows, and a title from a first message."""

from __future__ import annotations

import re
from collections.abc import Iterable

from modules.chats.files import words_of
from modules.generation.reasoning import without_reasoning


def matches_of(search: str) -> str:
    """`search` as one literal phrase of an FTS5 query.

    >>> matches_of('say "yes"')
    '"say ""yes\"""'
    """
    return '"' + search.replace('"', '""').replace("\0", "") + '"'  # a query ends at NUL, even within quotes


def holds(content: str, search: str) -> bool:
    """Whether `search`, in small letters, stands in a text, whatever the case."""
    return search in content.lower()


def excerpt(content: str, search: str, around: int = 40) -> str:
    """The words around the first place of `search`, on one line."""
    at = content.lower().find(search.lower())
    start = max(0, at - around)
    end = max(at, 0) + len(search) + around
    words = " ".join(content[start:end].split())
    return ("… " if start else "") + words + (" …" if end < len(content) else "")


_GREETING = re.compile(
    r"(hello|hi|hey|hiya|howdy|yo|greetings)( there)?|good (day|morning|afternoon|evening)|how are you|test"
    r"|你好吗?|您好|大家好|嗨|哈喽|喂|在吗|早|早上好|上午好|下午好|晚上好|测试"
)


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


def title_of(messages: Iterable[tuple[str, str, str | None]]) -> str:
    """The title of a chat that has none of its own, from its first messages, oldest first.

    Each as (role, content, the mark of thinking that its prompt ended with).

    It is what the user asks first, without attached files; a mere greeting only where nothing else was said; and where the user said nothing
    in words (a picture, a character that speaks first), what was said to them, without the reasoning before it.

    >>> title_of([("user", "Hello!", None), ("assistant", "Hi. What can I do?", ""), ("user", "Explain tides.", None)])
    'Explain tides.'
    """
    said, told = [], []
    for role, content, opened in messages:
        if role == "user":
            said.append(titled(words_of(content)))
        elif role == "assistant":
            told.append(titled(without_reasoning(content, opened)))
    asked = [title for title in said if title and not _GREETING.fullmatch(" ".join(re.findall(r"\w+", title.lower())))]
    return next((title for title in (*asked, *said, *told) if title), "")
