"""ShareGPT: {"conversations": [{"from": "human", "value": …}, {"from": "gpt", …}]}; "items" in the first such files."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pydantic import AliasChoices, Field

from modules.chats.contents import Content, told
from modules.chats.portable import Lenient, PortableChat, PortableMessage, chat_of, checked
from modules.chats.remarks import Remark, Unreadable
from modules.generation.types import Role

NAME = "sharegpt"
SUFFIX = ".json"
LISTS = ("conversations", "items", "conversation")
_ROLES: dict[str, Role] = {
    "system": "system",
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "bot", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response"), "tool"),
}
_NAMES: dict[Role, str] = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


class _Turn(Lenient):
    speaker: str = Field(validation_alias=AliasChoices("from", "role", "user"))
    value: str | None = Field("", validation_alias=AliasChoices("value", "content", "text"))


class _File(Lenient):
    turns: list[_Turn] = Field(validation_alias=AliasChoices(*LISTS))
    title: Any = None
    system: Any = None
    tools: Any = None
    images: Any = None


def fits(value: Any) -> bool:
    lists = [value[name] for name in LISTS if name in value] if isinstance(value, dict) else []
    return any(isinstance(turns, list) and (not turns or any(map(_is_turn, turns))) for turns in lists)


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and bool({"from", "role", "user"} & set(value))


def read(value: Any) -> PortableChat:
    """Raises Unreadable."""
    file = checked(_File, value)
    turns = [PortableMessage(_role(turn.speaker), turn.value or "") for turn in file.turns]
    counts: Counter[str] = Counter()
    if isinstance(file.system, str) and file.system.strip() and not (turns and turns[0].role == "system"):
        turns.insert(0, PortableMessage("system", file.system))
    if isinstance(file.images, list) and file.images:
        turns = _with_pictures(turns, file.images, counts)
    remarks = told(counts) + ([Remark("tools")] if file.tools else [])
    return chat_of(turns, file.title if isinstance(file.title, str) else "", remarks=remarks)


def _with_pictures(turns: list[PortableMessage], images: list[Any], counts: Counter[str]) -> list[PortableMessage]:
    """The pictures of a chat belong to its first question."""
    content = Content(counts)
    for image in images:
        content.picture(image)
    at = next((at for at, turn in enumerate(turns) if turn.role == "user"), None)
    if at is None:
        return [PortableMessage("user", content.text, pictures=content.pictures), *turns]
    content_of_turn = "\n\n".join(text for text in (turns[at].content, content.text) if text)
    return [*turns[:at], PortableMessage("user", content_of_turn, pictures=content.pictures), *turns[at + 1 :]]


def _role(name: str) -> Role:
    if name.lower() not in _ROLES:
        raise Unreadable("role", name=name[:40])
    return _ROLES[name.lower()]


def write(chat: PortableChat) -> str:
    """The branch in front."""
    turns = [{"from": _NAMES[turn.role], "value": turn.content} for turn in chat.told_branch()]
    named = {"title": chat.title} if chat.titled else {}
    return json.dumps({**named, "conversations": turns}, ensure_ascii=False, indent=1)
