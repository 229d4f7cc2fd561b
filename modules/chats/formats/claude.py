"""claude.ai's export, conversations.json: {"name", "chat_messages": [{"uuid", "sender", "content": […], "parent_message_uuid"}]}."""

from __future__ import annotations

from collections import Counter
from typing import Any

from modules.chats.contents import Content, fenced, moment, told
from modules.chats.formats import openai
from modules.chats.portable import Lenient, Node, PortableChat, PortableMessage, chat_of_tree, checked

_NO_PARENT = "00000000-0000-4000-8000-000000000000"


class _Message(Lenient):
    sender: str
    uuid: str | None = None
    text: str | None = None
    content: list[dict[str, Any] | str] | None = None
    attachments: list[dict[str, Any]] | None = None
    files: list[dict[str, Any]] | None = None
    created_at: Any = None
    parent_message_uuid: str | None = None


class _File(Lenient):
    chat_messages: list[_Message]
    name: str | None = None
    created_at: Any = None
    current_leaf_message_uuid: str | None = None


def fits(value: Any) -> bool:
    return isinstance(value, dict) and "chat_messages" in value


def read(value: Any) -> PortableChat:
    """Raises Unreadable."""
    file = checked(_File, value)
    counts: Counter[str] = Counter()
    nodes: list[Node] = []
    for at, message in enumerate(file.chat_messages):
        before = nodes[-1].id if nodes else None  # older files do not say what follows what
        parent = message.parent_message_uuid or before
        nodes.append(Node(message.uuid or f"#{at}", None if parent == _NO_PARENT else parent, _message(message, counts)))
    shown = file.current_leaf_message_uuid or (nodes[-1].id if nodes else None)
    return chat_of_tree(nodes, shown, file.name or "", created=moment(file.created_at), remarks=told(counts))


def _message(message: _Message, counts: Counter[str]) -> PortableMessage:
    role = openai.role_of(message.sender)
    content = Content(counts)
    openai.add_parts(content, message.content or [])
    if not content.text.strip():
        content.say(message.text or "")
    for attached in message.attachments or []:
        text, name = attached.get("extracted_content"), attached.get("file_name")
        if isinstance(text, str) and text.strip():
            content.say(f"{' '.join(str(name or '').split())}\n{fenced(text)}".strip())
        else:
            content.named("files", name)
    for file in message.files or []:
        image = file.get("file_kind") == "image"
        content.named("pictures" if image else "files", file.get("file_name") or file.get("file_uuid"))
    return PortableMessage(role, content.text, created=moment(message.created_at), pictures=content.pictures)
