"""A chat apart from any database: what files hold, and what import and export pass on."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from modules.chats.records import Figures, State
from modules.chats.search import title_of
from modules.errors import UserError
from modules.generation.types import Role

T = TypeVar("T")
MOST_MESSAGES = 100_000
LATEST = 1e11
"""Seconds: a time that a browser can still write out."""


@dataclass(frozen=True)
class PortableMessage:
    """One message; parent: its place in the list of the chat, always before its own; None for a first message.

    created: seconds since 1970, 0 where nobody knows. pictures: files as they were attached.
    """

    role: Role
    content: str
    parent: int | None = None
    state: State = "whole"
    created: float = 0.0
    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    extra: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class PortableChat:
    """A tree of messages; shown: the place of the last message of the branch in front, None in an empty chat.

    titled: people chose the title. settings: what the chat sets for itself.
    """

    messages: tuple[PortableMessage, ...] = ()
    shown: int | None = None
    title: str = ""
    titled: bool = False
    pinned: bool = False
    created: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def system_prompt(self) -> str:
        return str(self.settings.get("system_prompt") or "")

    def branch(self) -> list[PortableMessage]:
        """The branch in front, first message first."""
        found = []
        at = self.shown
        while at is not None:
            found.append(self.messages[at])
            at = self.messages[at].parent
        return found[::-1]

    def told_branch(self) -> list[PortableMessage]:
        """The same, with the chat's system prompt as its first message."""
        told = [PortableMessage("system", self.system_prompt)] if self.system_prompt else []
        return told + self.branch()


def chat_of(turns: Iterable[PortableMessage], title: str = "") -> PortableChat:
    """A chat of one branch. A first system message becomes the chat's system prompt; messages with nothing in them are left out.

    Without a title it has the beginning of the first question. Raises UserError where nothing is left.
    """
    kept = [turn for turn in turns if turn.content.strip() or (turn.pictures and turn.role != "system")]
    settings = {}
    if kept and kept[0].role == "system":
        settings["system_prompt"] = kept.pop(0).content
    if not kept and not settings:
        raise UserError("There is no message in this file.")
    title = clean_title(title)
    messages = tuple(replace(turn, parent=at - 1 if at else None) for at, turn in enumerate(kept))
    automatic = title_of((turn.role, turn.content, turn.figures.opened) for turn in messages[:12])
    return PortableChat(messages, len(messages) - 1 if messages else None, title or automatic, bool(title), settings=settings)


def clean_title(title: str) -> str:
    return " ".join(title.split())[:200].strip()


class Lenient(BaseModel):
    """Base of what is read from files of others: more keys are no mistake."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def checked(kind: type[T], value: Any, what: str) -> T:
    """`value` as `kind`, a pydantic model or any type. Raises UserError that says in one sentence what is wrong where."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"This {what} cannot be read: {where or 'its content'}: {first['msg'].lower()}.") from None


def decoded(data: str) -> bytes:
    """A picture from base64. Raises UserError."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("A picture in this file is not valid base64.") from None


def several(value: Any, read_one: Callable[[Any], PortableChat]) -> list[PortableChat]:
    """One chat, or a list of them."""
    items: Sequence[Any] = value if isinstance(value, list) else [value]
    chats = [read_one(item) for item in items]
    if sum(len(chat.messages) for chat in chats) > MOST_MESSAGES:
        raise UserError(f"This file has too many messages: {MOST_MESSAGES} are the most at a time.")
    return chats
