"""Messages in OpenAI's form: {"messages": [{"role", "content"}, …]}, or the list alone; pictures inside, Anthropic's parts too."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any

from modules.chats.contents import Content, told, words
from modules.chats.images import kind_of
from modules.chats.portable import Lenient, PortableChat, PortableMessage, chat_of, checked
from modules.chats.remarks import Remark, Unreadable
from modules.generation.types import Role

NAME = "openai"
SUFFIX = ".json"
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "model", "ai", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function"), "tool"),
}


class _Call(Lenient):
    name: str = ""
    arguments: Any = None


class _ToolCall(Lenient):
    function: _Call | None = None
    custom: dict[str, Any] | None = None


class Message(Lenient):
    """One message of the protocol."""

    role: str
    content: str | list[dict[str, Any] | str] | dict[str, Any] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Call | None = None
    audio: dict[str, Any] | None = None


class _File(Lenient):
    messages: list[Message]
    title: Any = None
    system: Any = None
    tools: Any = None
    functions: Any = None


def fits(value: Any) -> bool:
    return isinstance(value, dict) and "messages" in value


def read(value: Any) -> PortableChat:
    """Raises Unreadable."""
    file = checked(_File, value)
    counts: Counter[str] = Counter()
    turns = [message_of(message, counts) for message in file.messages]
    if isinstance(file.system, str) and file.system.strip() and not (turns and turns[0].role == "system"):
        turns.insert(0, PortableMessage("system", file.system))
    remarks = told(counts) + ([Remark("tools")] if file.tools or file.functions else [])
    return chat_of(turns, file.title if isinstance(file.title, str) else "", remarks=remarks)


def role_of(name: str) -> Role:
    """Raises Unreadable."""
    if name.lower() not in _ROLES:
        raise Unreadable("role", name=name[:40])
    return _ROLES[name.lower()]


def message_of(message: Message, counts: Counter[str]) -> PortableMessage:
    """Raises Unreadable."""
    role = role_of(message.role)
    content = Content(counts)
    content.think(message.reasoning_content or "")
    said = message.content if isinstance(message.content, list) else [message.content or ""]
    add_parts(content, said)
    content.say(message.refusal or "")
    if message.audio:
        content.say(transcript) if isinstance(transcript := message.audio.get("transcript"), str) else None
        content.named("parts", "audio")
    for call in [*(message.tool_calls or []), *([_ToolCall(function=message.function_call)] if message.function_call else [])]:
        if call.function is not None:
            content.call(call.function.name, call.function.arguments)
        elif call.custom is not None:
            content.call(call.custom.get("name"), call.custom.get("input"))
    return PortableMessage(role, content.text, pictures=content.pictures)


def add_parts(content: Content, parts: list[dict[str, Any] | str]) -> None:
    """Put the parts of a message, OpenAI's or Anthropic's, into `content`. Raises Unreadable."""
    lines: list[str] = []
    for part in parts:
        kind = "text" if isinstance(part, str) else str(part.get("type") or ("text" if "text" in part else "part"))
        if kind in ("text", "input_text", "output_text"):
            lines.append(part if isinstance(part, str) else words(part.get("text")))
            continue
        content.say("\n".join(line for line in lines if line))
        lines = []
        assert not isinstance(part, str)
        _add(content, kind, part)
    content.say("\n".join(line for line in lines if line))


def _add(content: Content, kind: str, part: dict[str, Any]) -> None:
    if kind in ("image_url", "input_image", "image"):
        at = part.get("image_url") or part.get("image") or part.get("source") or part.get("file_id")
        at = at.get("url") or (at.get("data") and f"data:image;base64,{at['data']}") if isinstance(at, dict) else at
        content.picture(at)
    elif kind in ("thinking", "reasoning"):
        content.think(words(part.get("thinking") or part.get("text")))
    elif kind == "tool_use":
        content.call(part.get("name"), part.get("input"))
    elif kind == "tool_result":
        content.result(part.get("name"), part.get("content"))
    elif kind == "refusal":
        content.say(words(part.get("refusal")))
    elif kind in ("file", "input_file", "document"):
        inner = part.get("file")
        content.named("files", (inner if isinstance(inner, dict) else part).get("filename") or part.get("title") or kind)
    else:
        content.named("parts", kind)


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
