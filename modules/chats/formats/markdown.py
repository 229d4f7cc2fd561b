"""A chat as a Markdown page: a heading for each turn, and the text below it as it is."""

from __future__ import annotations

import re

from modules.chats.portable import PortableChat, PortableMessage, chat_of
from modules.chats.remarks import Unreadable
from modules.generation.types import Role

NAME = "markdown"
SUFFIX = ".md"
_HEADINGS: dict[Role, str] = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "you": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
}
_LINE = re.compile(r"^(\\*)## (System|User|Assistant|Tool|You|Model)[ \t]*$", re.IGNORECASE)


def fits(text: str) -> bool:
    return any((found := _LINE.match(line)) and not found[1] for line in text.replace("\r\n", "\n").split("\n"))


def read(text: str) -> PortableChat:
    """Raises Unreadable where there is no heading of a turn."""
    if "\r\n" in text and "\n" not in text.replace("\r\n", ""):
        text = text.replace("\r\n", "\n")
    title = ""
    turns: list[tuple[Role, list[str]]] = []
    for line in text.split("\n"):
        found = _LINE.match(line)
        if found and not found[1]:
            turns.append((_ROLES[found[2].lower()], []))
        elif turns:
            turns[-1][1].append(line[1:] if found else line)
        elif line.startswith("# ") and not title:
            title = line[2:]
    if not turns:
        raise Unreadable("headings")
    return chat_of((PortableMessage(role, _content(lines)) for role, lines in turns), title)


def _content(lines: list[str]) -> str:
    """Without the empty line after the heading, and the one before the next."""
    start = 1 if lines and not lines[0].strip() else 0
    end = len(lines) - 1 if len(lines) > start and not lines[-1].strip() else len(lines)
    return "\n".join(lines[start:end])


def write(chat: PortableChat) -> str:
    """The branch in front."""
    parts = [f"# {chat.title}\n"] if chat.titled else []
    for turn in chat.told_branch():
        lines = [f"\\{line}" if _LINE.match(line) else line for line in turn.content.split("\n")]
        parts.append(f"## {_HEADINGS[turn.role]}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)
