"""ShareGPT: {"conversations": [{"from": "human", "value": …}, {"from": "gpt", …}]}, one chat or a list."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from modules.chats.portable import Lenient, PortableChat, PortableMessage, chat_of, checked, several
from modules.errors import UserError
from modules.generation.types import Role

NAME = "sharegpt"
SUFFIX = ".json"
_ROLES: dict[str, Role] = {
    "system": "system",
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "function_call"), "tool"),
}
_NAMES: dict[Role, str] = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


class _Turn(Lenient):
    speaker: str = Field(alias="from")
    value: str = ""


class _File(Lenient):
    conversations: list[_Turn]
    title: str | None = None


def fits(value: Any) -> bool:
    return isinstance(value, dict) and "conversations" in value


def read(value: Any) -> list[PortableChat]:
    """Raises UserError."""
    return several(value, _chat)


def _chat(value: Any) -> PortableChat:
    file = checked(_File, value, "ShareGPT file")
    return chat_of((PortableMessage(_role(turn.speaker), turn.value) for turn in file.conversations), file.title or "")


def _role(name: str) -> Role:
    if name.lower() not in _ROLES:
        raise UserError(f"This ShareGPT file cannot be read: nobody knows who speaks as {name[:40]!r}.")
    return _ROLES[name.lower()]


def write(chat: PortableChat) -> str:
    """The branch in front."""
    turns = [{"from": _NAMES[turn.role], "value": turn.content} for turn in chat.told_branch()]
    named = {"title": chat.title} if chat.titled else {}
    return json.dumps({**named, "conversations": turns}, ensure_ascii=False, indent=1)
