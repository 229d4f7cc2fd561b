"""LM Studio's NAME.conversation.json: {"name", "messages": [{"versions": [{"role", "content" | "steps"}], "currentlySelected"}]}."""

from __future__ import annotations

from collections import Counter
from typing import Any

from modules.chats.contents import Content, moment, told, words
from modules.chats.formats import openai
from modules.chats.portable import Lenient, PortableChat, PortableMessage, Turn, chat_of_versions, checked

_SYSTEM = "llm.prediction.systemPrompt"


class _Step(Lenient):
    type: str = ""
    content: list[dict[str, Any]] | None = None
    style: Any = None


class _Version(Lenient):
    role: str
    content: list[dict[str, Any]] | None = None
    steps: list[_Step] | None = None
    senderInfo: Any = None


class _Message(Lenient):
    versions: list[_Version]
    currentlySelected: int = 0


class _File(Lenient):
    messages: list[_Message]
    name: Any = None
    createdAt: Any = None
    systemPrompt: Any = None
    perChatPredictionConfig: Any = None


def fits(value: Any) -> bool:
    messages = value.get("messages") if isinstance(value, dict) else None
    return isinstance(messages, list) and any(isinstance(item, dict) and "versions" in item for item in messages)


def read(value: Any) -> PortableChat:
    """Raises Unreadable."""
    file = checked(_File, value)
    counts: Counter[str] = Counter()
    turns = [Turn([_version(version, counts) for version in m.versions], m.currentlySelected) for m in file.messages]
    name = file.name if isinstance(file.name, str) else ""
    return chat_of_versions(turns, name, system=_system(file), created=moment(file.createdAt), remarks=told(counts))


def _system(file: _File) -> str:
    config = file.perChatPredictionConfig
    fields = config.get("fields") if isinstance(config, dict) else None
    prompts = [field.get("value") for field in fields or [] if isinstance(field, dict) and field.get("key") == _SYSTEM]
    return next((text for text in (*prompts, file.systemPrompt) if isinstance(text, str) and text.strip()), "")


def _version(version: _Version, counts: Counter[str]) -> PortableMessage:
    role = openai.role_of(version.role)
    content = Content(counts)
    _add(content, version.content or [], thinks=False)
    for step in version.steps or []:
        if step.type in ("", "contentBlock"):  # others say how it went, and hold nothing that was said
            style = step.style
            _add(content, step.content or [], thinks=isinstance(style, dict) and style.get("type") == "thinking")
    sender = version.senderInfo.get("senderName") if isinstance(version.senderInfo, dict) else None
    model = sender[:200] if isinstance(sender, str) and role == "assistant" else None
    return PortableMessage(role, content.text, model=model, pictures=content.pictures)


def _add(content: Content, parts: list[dict[str, Any]], *, thinks: bool) -> None:
    texts: list[str] = []
    for part in parts:
        match kind := str(part.get("type") or "text"):
            case "text":
                texts.append(words(part.get("text")))
            case "toolCallRequest":
                content.call(part.get("name"), part.get("parameters"))
            case "toolCallResult":
                content.result(part.get("name"), part.get("content"))
            case "file":
                code = "pictures" if part.get("fileType") == "image" else "files"
                content.named(code, part.get("name") or part.get("fileIdentifier"))
            case _:
                content.named("parts", kind)
    text = "".join(texts)
    content.think(text) if thinks else content.say(text)
