"""Our own form: the whole tree of a chat with all that is known of each message, as JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

from pydantic import Field

from modules.chats.contents import decoded
from modules.chats.conversation import ChatSettings
from modules.chats.portable import LATEST, Lenient, PortableChat, PortableMessage, checked, clean_title
from modules.chats.records import Figures, Run, State
from modules.chats.remarks import Unreadable
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import Role

NAME = "textloom"
SUFFIX = ".json"
VERSION = 1


class _Message(Lenient):
    role: Role
    content: str
    parent: int | None = None
    state: State = "whole"
    created: float = Field(0.0, ge=0, le=LATEST)
    model: str | None = None
    sampling: dict[str, Any] = Field(default_factory=dict)
    figures: dict[str, Any] = Field(default_factory=dict)
    extra: dict[str, Any] = Field(default_factory=dict)
    pictures: list[str] = Field(default_factory=list)


class _File(Lenient):
    textloom: int
    messages: list[_Message]
    shown: int | None = None
    title: str = ""
    titled: bool = False
    pinned: bool = False
    created: float = Field(0.0, ge=0, le=LATEST)
    settings: dict[str, Any] = Field(default_factory=dict)


def fits(value: Any) -> bool:
    return isinstance(value, dict) and "textloom" in value


def read(value: Any) -> PortableChat:
    """Raises Unreadable, for what a newer version wrote too."""
    version = value.get("textloom")
    if isinstance(version, int | float) and version > VERSION:
        raise Unreadable("newer")
    file = checked(_File, value)
    if file.textloom != VERSION:
        raise Unreadable("wrong", where="textloom")
    for at, message in enumerate(file.messages):
        if message.parent is not None and not 0 <= message.parent < at:
            raise Unreadable("order", n=at + 1)
    if file.shown is not None and not 0 <= file.shown < len(file.messages):
        raise Unreadable("shown", n=file.shown + 1)
    shown = file.shown if file.shown is not None or not file.messages else len(file.messages) - 1
    known = {key: value for key, value in file.settings.items() if key in ChatSettings.model_fields}
    return PortableChat(
        tuple(_message(message) for message in file.messages),
        shown,
        clean_title(file.title),
        file.titled,
        file.pinned,
        file.created,
        checked(ChatSettings, known).differences(),
    )


def _message(message: _Message) -> PortableMessage:
    known = {key: value for key, value in message.figures.items() if key in Figures.__dataclass_fields__}
    return PortableMessage(
        message.role,
        message.content,
        message.parent,
        "cut" if message.state == "streaming" else message.state,
        message.created,
        message.model,
        _sampling(message.sampling),
        checked(Figures, known),
        _extra(message.extra),
        tuple(map(decoded, message.pictures)),
    )


def _extra(values: dict[str, Any]) -> dict[str, Any]:
    """How a reply was made is left out where it does not say that: everything else is shown, and nothing depends on it."""
    try:
        checked(list[Run], values.get("runs", []))
        return values
    except UserError:
        return {key: value for key, value in values.items() if key != "runs"}


def _sampling(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of another version are left out: they say how a reply was made, and nothing depends on them."""
    try:
        return SamplingParams.read(values).model_dump(mode="json", exclude_defaults=True)
    except UserError:
        return {}


def write(chat: PortableChat) -> str:
    """All branches."""
    head = {"title": chat.title, "titled": chat.titled, "pinned": chat.pinned, "created": chat.created, "shown": chat.shown}
    messages = [_written(message) for message in chat.messages]
    whole = {"textloom": VERSION, **head, "settings": dict(chat.settings), "messages": messages}
    return json.dumps(whole, ensure_ascii=False, indent=1)


def _written(message: PortableMessage) -> dict[str, Any]:
    more: dict[str, Any] = {
        "model": message.model,
        "sampling": dict(message.sampling),
        "figures": message.figures.stored(),
        "extra": dict(message.extra),
        "pictures": [base64.b64encode(data).decode() for data in message.pictures],
    }
    return {
        "role": message.role,
        "content": message.content,
        "parent": message.parent,
        "state": message.state,
        "created": message.created,
        **{key: value for key, value in more.items() if value},
    }
