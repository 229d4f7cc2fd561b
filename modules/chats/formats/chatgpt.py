"""ChatGPT's export, conversations.json: {"mapping": {id: {"message", "parent", "children"}}, "current_node", "title"}, with all branches."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from typing import Any

from modules.chats.contents import Content, Files, fenced, moment, told, words
from modules.chats.portable import Lenient, Node, PortableChat, PortableMessage, chat_of_tree, checked
from modules.chats.remarks import Unreadable
from modules.generation.types import Role

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "critic": "assistant",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class _Author(Lenient):
    role: str
    name: str | None = None


class _Message(Lenient):
    author: _Author
    content: dict[str, Any] | None = None
    create_time: Any = None
    recipient: str | None = None
    metadata: dict[str, Any] | None = None


class _Node(Lenient):
    message: _Message | None = None
    parent: str | None = None
    children: list[str] | None = None


class _File(Lenient):
    mapping: dict[str, _Node]
    current_node: str | None = None
    title: str | None = None
    create_time: Any = None


def fits(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("mapping"), dict)


def read(value: Any, files: Files) -> PortableChat:
    """files: what lies beside conversations.json in the export. Raises Unreadable."""
    file = checked(_File, value)
    counts: Counter[str] = Counter()
    system: list[str] = []
    messages = {id_: _message(node.message, files, counts, system) for id_, node in file.mapping.items()}
    _join_thoughts(file.mapping, messages)
    nodes = [Node(id_, file.mapping[id_].parent, messages[id_]) for id_ in _in_order(file.mapping)]
    return chat_of_tree(
        nodes,
        file.current_node,
        file.title or "",
        system="\n\n".join(dict.fromkeys(system)),
        created=moment(file.create_time),
        remarks=told(counts),
    )


def _in_order(mapping: Mapping[str, _Node]) -> list[str]:
    """The ids, those with the same parent as it has them."""
    order: dict[str, None] = {}
    for node in mapping.values():
        order |= dict.fromkeys(child for child in node.children or [] if child in mapping)
    return [*(id_ for id_ in mapping if id_ not in order), *order]


def _message(message: _Message | None, files: Files, counts: Counter[str], system: list[str]) -> PortableMessage | None:
    """None for what people do not see; what they told the model about themselves is put into `system`."""
    if message is None or not message.content:
        return None
    role = _ROLES.get(message.author.role)
    if role is None:
        raise Unreadable("role", name=message.author.role[:40])
    metadata = message.metadata or {}
    if instructions := _instructions(message.content, metadata):
        system.append(instructions)
        return None
    attached = {str(item.get("id")): item for item in metadata.get("attachments") or [] if isinstance(item, dict)}
    hidden = bool(metadata.get("is_visually_hidden_from_conversation"))
    content = Content(Counter() if hidden else counts)
    _add(content, message, files, {id_: item.get("name") for id_, item in attached.items()})
    for item in attached.values():
        if not str(item.get("mime_type") or "").startswith("image/"):
            content.named("files", item.get("name"))
    model = metadata.get("model_slug")
    read = PortableMessage(
        role,
        content.text,
        created=moment(message.create_time),
        model=model[:200] if isinstance(model, str) and role == "assistant" else None,
        pictures=content.pictures,
    )
    counts["hidden"] += hidden and read.says_something
    return read if read.says_something and not hidden else None


def _instructions(content: dict[str, Any], metadata: dict[str, Any]) -> str:
    """What a person wrote in the custom instructions; "" for any other message."""
    about = metadata.get("user_context_message_data")
    told = (content, ("user_profile", "user_instructions")), (about, ("about_user_message", "about_model_message"))
    if content.get("content_type") != "user_editable_context" and not metadata.get("is_user_system_message"):
        return ""
    texts = [values.get(key) for values, keys in told if isinstance(values, dict) for key in keys]
    return "\n\n".join(dict.fromkeys(text for text in texts if isinstance(text, str) and text.strip()))


def _add(content: Content, message: _Message, files: Files, names: Mapping[str, Any]) -> None:
    assert message.content is not None
    kind, said = str(message.content.get("content_type") or "text"), message.content
    asked = message.recipient not in (None, "", "all") and message.author.role == "assistant"
    if kind in ("text", "multimodal_text"):
        for part in _parts(said):
            _add_part(content, part, files, names, message.recipient if asked else None)
    elif kind == "code":
        text = words(said.get("text"))
        language = str(said.get("language") or "")
        if asked:
            content.call(message.recipient, text)
        elif text.strip():
            content.say(fenced(text, language if language.isalnum() and language != "unknown" else ""))
    elif kind == "thoughts":
        thoughts = [thought for thought in said.get("thoughts") or [] if isinstance(thought, dict)]
        content.think("\n\n".join(_lines(thought, "summary", "content") for thought in thoughts))
    elif kind == "tether_quote":
        content.say(_lines(said, "title", "url", "text"))
    elif kind == "tether_browsing_display":
        content.say(_lines(said, "summary", "result"))
    elif kind != "reasoning_recap":  # how long it thought
        text = _lines(said, "name", "title", "text", "result", "content")
        content.say(text) if text else content.named("parts", kind)


def _lines(values: dict[str, Any], *keys: str) -> str:
    return "\n".join(text for key in keys if isinstance(text := values.get(key), str) and text.strip())


def _parts(said: dict[str, Any]) -> list[Any]:
    parts = said.get("parts")
    if parts is None:
        parts = [said["text"]] if said.get("text") is not None else []
    if not isinstance(parts, list):
        raise Unreadable("list", where="parts")
    return parts  # pyright: ignore[reportUnknownVariableType]


def _add_part(content: Content, part: Any, files: Files, names: Mapping[str, Any], tool: str | None) -> None:
    if isinstance(part, str):
        if tool and part.strip():
            content.call(tool, part)
        else:
            content.say(part)
        return
    if part is None:
        return
    if not isinstance(part, dict):
        raise Unreadable("text", where="parts")
    kind = str(part.get("content_type") or "")
    if "image" in kind or (not kind and part.get("asset_pointer")):
        content.picture(part.get("asset_pointer") or part.get("image_url"), files, names)
    elif isinstance(part.get("text"), str):
        content.say(html.unescape(part["text"]) if kind == "audio_transcription" else part["text"])
    else:
        content.named("parts", kind)


def _join_thoughts(mapping: Mapping[str, _Node], messages: dict[str, PortableMessage | None]) -> None:
    """Thoughts are a message of their own there; here they stand before the answer that follows, where one alone does."""
    children: dict[str, list[str]] = {}
    for id_, node in mapping.items():
        if node.parent is not None:
            children.setdefault(node.parent, []).append(id_)
    for id_, node in reversed(list(mapping.items())):  # the last first: several in a row become one
        thought = messages[id_]
        if thought is None or node.message is None or (node.message.content or {}).get("content_type") != "thoughts":
            continue
        following = children.get(id_, [])
        seen = {id_}
        while len(following) == 1 and messages[following[0]] is None and following[0] not in seen:
            seen.add(following[0])
            following = children.get(following[0], [])
        answer = messages[following[0]] if len(following) == 1 else None
        if answer is None or answer.role != "assistant" or following[0] in seen or "<think>" in answer.content:
            continue
        messages[following[0]] = PortableMessage(
            "assistant",
            f"{thought.content}\n\n{answer.content}",
            created=answer.created,
            model=answer.model,
            pictures=answer.pictures,
        )
        messages[id_] = None
