"""Open WebUI's export: {"title", "chat": {"history": {"messages": {id: …}, "currentId"}, "params"}}, with all branches."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from contextlib import suppress
from typing import Any

from modules.chats.contents import Content, moment, told
from modules.chats.formats import openai
from modules.chats.portable import Lenient, Node, PortableChat, PortableMessage, chat_of, chat_of_tree, checked

_DETAILS = re.compile(r'<details type="(reasoning|tool_calls)"([^>]*)>(.*?)</details>\s*', re.DOTALL)
_SUMMARY = re.compile(r"\s*<summary>.*?</summary>", re.DOTALL)
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


class _Message(Lenient):
    role: str
    content: str | list[dict[str, Any] | str] | None = None
    parentId: str | None = None
    childrenIds: list[str] | None = None
    timestamp: Any = None
    model: Any = None
    files: list[dict[str, Any]] | None = None


class _History(Lenient):
    messages: dict[str, _Message]
    currentId: str | None = None


class _Chat(Lenient):
    history: _History | None = None
    messages: list[_Message] | None = None
    title: Any = None
    system: Any = None
    params: Any = None


def fits(value: Any) -> bool:
    chat = value.get("chat", value) if isinstance(value, dict) else None
    if not isinstance(chat, dict):
        return False
    history = chat.get("history")
    return (isinstance(history, dict) and "messages" in history) or (chat is not value and "messages" in chat)


def read(value: Any) -> PortableChat:
    """Raises Unreadable."""
    chat = checked(_Chat, value.get("chat", value))
    title = next((text for text in (value.get("title"), chat.title) if isinstance(text, str)), "")
    params = chat.params if isinstance(chat.params, dict) else {}
    system = next((text for text in (chat.system, params.get("system")) if isinstance(text, str) and text.strip()), "")
    created = moment(value.get("created_at") or value.get("timestamp"))
    counts: Counter[str] = Counter()
    if chat.history is None or (not chat.history.messages and chat.messages):
        turns = [_message(message, counts) for message in chat.messages or []]
        if system and not (turns and turns[0].role == "system"):
            turns.insert(0, PortableMessage("system", system))
        return chat_of(turns, title, created=created, remarks=told(counts))
    known = chat.history.messages
    order: dict[str, None] = {}
    for message in known.values():
        order |= dict.fromkeys(child for child in message.childrenIds or [] if child in known)
    ids = [*(id_ for id_ in known if id_ not in order), *order]
    nodes = [Node(id_, known[id_].parentId, _message(known[id_], counts)) for id_ in ids]
    return chat_of_tree(nodes, chat.history.currentId, title, system=system, created=created, remarks=told(counts))


def _message(message: _Message, counts: Counter[str]) -> PortableMessage:
    role = openai.role_of(message.role)
    content = Content(counts)
    if isinstance(message.content, list):
        openai.add_parts(content, message.content)
    elif role == "assistant":
        _add_reply(content, message.content or "")
    else:
        content.say(message.content or "")
    for file in message.files or []:
        if file.get("type") == "image" or str(file.get("content_type") or "").startswith("image/"):
            content.picture(file.get("url"))
        else:
            content.named("files", file.get("name") or file.get("url"))
    model = message.model if isinstance(message.model, str) and role == "assistant" else None
    return PortableMessage(
        role, content.text, created=moment(message.timestamp), model=model and model[:200], pictures=content.pictures
    )


def _add_reply(content: Content, text: str) -> None:
    """A reply, in which thoughts and calls of tools stand as HTML."""
    at = 0
    for found in _DETAILS.finditer(text):
        content.say(text[at : found.start()].strip("\n"))
        at = found.end()
        if found[1] == "reasoning":
            inner = _SUMMARY.sub("", found[3], count=1).strip()
            inner = html.unescape(inner) if inner.startswith("&gt;") else inner
            content.think("\n".join(re.sub(r"^> ?", "", line) for line in inner.split("\n")))
        else:
            values = {key: html.unescape(value) for key, value in _ATTRIBUTE.findall(found[2])}
            content.call(values.get("name"), values.get("arguments"))
            if result := values.get("result"):
                with suppress(ValueError, RecursionError):
                    result = json.loads(result)
                content.result(values.get("name"), result)
    content.say(text[at:].strip("\n") if at else text)
