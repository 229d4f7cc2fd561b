"""Messages in OpenAI's form: {"messages": [{"role", "content"}, …]}, one chat, a list, or one on each line; pictures inside."""

from __future__ import annotations

import base64
import json
from typing import Any, Literal

from modules.chats.pictures import kind_of
from modules.chats.portable import Lenient, PortableChat, PortableMessage, chat_of, checked, decoded, several
from modules.generation.types import Role

NAME = "openai"
SUFFIX = ".json"


class _Address(Lenient):
    url: str


class _Part(Lenient):
    type: str
    text: str | None = None
    image_url: _Address | str | None = None


class _Message(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part | str] | None = None


class _File(Lenient):
    messages: list[_Message]
    title: str | None = None


def fits(value: Any) -> bool:
    return isinstance(value, dict) and "messages" in value


def read(value: Any) -> list[PortableChat]:
    """Pictures at addresses of the network are left out: only those in the file come along. Raises UserError."""
    return several(value, _chat)


def _chat(value: Any) -> PortableChat:
    file = checked(_File, value, "file of messages")
    return chat_of((_message(message) for message in file.messages), file.title or "")


def _message(message: _Message) -> PortableMessage:
    role: Role = "system" if message.role == "developer" else "tool" if message.role == "function" else message.role
    if not isinstance(message.content, list):
        return PortableMessage(role, message.content or "")
    parts = [_Part(type="text", text=part) if isinstance(part, str) else part for part in message.content]
    texts = [part.text for part in parts if part.text]
    pictures = [picture for part in parts if (picture := _picture(part.image_url))]
    return PortableMessage(role, "\n".join(texts), pictures=tuple(pictures))


def _picture(address: _Address | str | None) -> bytes | None:
    url = address.url if isinstance(address, _Address) else address or ""
    head, _, data = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        return None
    return decoded(data)


def write(chat: PortableChat) -> str:
    """The branch in front."""
    messages = [{"role": turn.role, "content": _content(turn)} for turn in chat.told_branch()]
    named = {"title": chat.title} if chat.titled else {}
    return json.dumps({**named, "messages": messages}, ensure_ascii=False, indent=1)


def _content(turn: PortableMessage) -> Any:
    if not turn.pictures:
        return turn.content
    shown = [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in turn.pictures]
    return [*([{"type": "text", "text": turn.content}] if turn.content else []), *shown]


def data_url(data: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind_of(data).lower()};base64,{base64.b64encode(data).decode()}"
