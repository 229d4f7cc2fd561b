"""A chat apart from any database: what files hold, and what import and export pass on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from modules.chats.records import Figures, State
from modules.chats.remarks import Remark, Unreadable
from modules.chats.search import title_of
from modules.generation.types import Role

T = TypeVar("T")
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

    @property
    def says_something(self) -> bool:
        return bool(self.content.strip() or (self.pictures and self.role != "system"))


@dataclass(frozen=True)
class PortableChat:
    """A tree of messages; shown: the place of the last message of the branch in front, None in an empty chat.

    titled: people chose the title. settings: what the chat sets for itself. remarks: what of the file is not in it.
    """

    messages: tuple[PortableMessage, ...] = ()
    shown: int | None = None
    title: str = ""
    titled: bool = False
    pinned: bool = False
    created: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()

    @property
    def system_prompt(self) -> str:
        return str(self.settings.get("system_prompt") or "")

    def branch(self) -> list[PortableMessage]:
        """The branch in front, first message first."""
        return _branch(self.messages, self.shown)

    def told_branch(self) -> list[PortableMessage]:
        """The same, with the chat's system prompt as its first message."""
        told = [PortableMessage("system", self.system_prompt)] if self.system_prompt else []
        return told + self.branch()


class Node(NamedTuple):
    """A message in the tree of another program; message: None for what only holds the tree together."""

    id: str
    parent: str | None
    message: PortableMessage | None


class Turn(NamedTuple):
    """One place of a conversation, and what was said there, oldest version first; it goes on from the chosen one."""

    versions: Sequence[PortableMessage]
    chosen: int = 0


def chat_of(
    turns: Iterable[PortableMessage], title: str = "", *, created: float = 0.0, remarks: Iterable[Remark] = ()
) -> PortableChat:
    """A chat of one branch. A first system message becomes the chat's system prompt; messages with nothing in them are left out.

    Without a title it has the beginning of the first question. Raises Unreadable where nothing is left.
    """
    kept = [turn for turn in turns if turn.says_something]
    linked = [replace(turn, parent=at - 1 if at else None) for at, turn in enumerate(kept)]
    return _chat(linked, len(linked) - 1 if linked else None, title, created, "", remarks)


def chat_of_versions(
    turns: Iterable[Turn], title: str = "", *, system: str = "", created: float = 0.0, remarks: Iterable[Remark] = ()
) -> PortableChat:
    """A chat in which each turn may have several versions; those with nothing in them are left out. Raises Unreadable."""
    messages: list[PortableMessage] = []
    last: int | None = None
    for turn in turns:
        places = {}
        for at, version in enumerate(turn.versions):
            if version.says_something:
                places[at] = len(messages)
                messages.append(replace(version, parent=last))
        if places:
            last = places.get(turn.chosen, len(messages) - 1)
    return _chat(messages, last, title, created, system, remarks)


def chat_of_tree(
    nodes: Sequence[Node],
    shown: str | None,
    title: str = "",
    *,
    system: str = "",
    created: float = 0.0,
    remarks: Iterable[Remark] = (),
) -> PortableChat:
    """A chat of the messages of a tree; what follows a node without one follows what is before it.

    Versions of a message are in the order of `nodes`. shown: the node that the branch in front ends with; where there is no
    such node, the last branch is in front. Raises Unreadable, for trees that are none too.
    """
    children: dict[str | None, list[Node]] = {}
    known: set[str] = set()
    for node in nodes:
        if node.id in known:
            raise Unreadable("twice", id=node.id[:40])
        known.add(node.id)
    for node in nodes:
        children.setdefault(node.parent if node.parent in known else None, []).append(node)
    messages: list[PortableMessage] = []
    places: dict[str, int | None] = {}
    ahead: list[tuple[Node, int | None]] = [(node, None) for node in reversed(children.get(None, []))]
    while ahead:
        node, place = ahead.pop()
        if node.message is not None and node.message.says_something:
            messages.append(replace(node.message, parent=place))
            place = len(messages) - 1
        places[node.id] = place
        ahead += [(child, place) for child in reversed(children.get(node.id, []))]
    if len(places) < len(nodes):
        raise Unreadable("loop")
    orphans = sum(1 for node in nodes if node.parent is not None and node.parent not in known)
    told = [Remark("orphans", {"n": orphans})] if orphans else []
    last = len(messages) - 1 if messages else None
    return _chat(messages, places.get(shown or "", last), title, created, system, (*remarks, *told))


def _chat(
    messages: list[PortableMessage],
    shown: int | None,
    title: str,
    created: float,
    system: str,
    remarks: Iterable[Remark],
) -> PortableChat:
    """Where all begins with one system message, it becomes the chat's system prompt."""
    firsts = sum(1 for message in messages if message.parent is None)
    if not system and firsts == 1 and messages[0].role == "system":
        system = messages[0].content
        messages = [replace(message, parent=message.parent - 1 if message.parent else None) for message in messages[1:]]
        shown = shown - 1 if shown else None
    if shown is None and messages:
        shown = len(messages) - 1
    if not messages and not system:
        raise Unreadable("empty")
    title = clean_title(title)
    automatic = title_of((turn.role, turn.content, turn.figures.opened) for turn in _branch(messages, shown)[:12])
    settings = {"system_prompt": system} if system else {}
    return PortableChat(
        tuple(messages), shown, title or automatic, bool(title), created=created, settings=settings, remarks=tuple(remarks)
    )


def _branch(messages: Sequence[PortableMessage], last: int | None) -> list[PortableMessage]:
    found = []
    while last is not None:
        found.append(messages[last])
        last = messages[last].parent
    return found[::-1]


def clean_title(title: str) -> str:
    return " ".join(title.split())[:200].strip()


class Lenient(BaseModel):
    """Base of what is read from files of others: more keys are no mistake."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


_KINDS = {
    "missing": "missing",
    "string_type": "text",
    "list_type": "list",
    "tuple_type": "list",
    "dict_type": "object",
    "model_type": "object",
    "model_attributes_type": "object",
    "float_type": "number",
    "int_type": "number",
    "finite_number": "number",
}
"""What pydantic says → the code of a remark."""
_OF_UNION = re.compile(r"(str|int|float|bool|list\[.*|dict\[.*)$")
"""Which type of several a place in a value was compared with, in pydantic's path to it."""


def checked(kind: type[T], value: Any) -> T:
    """`value` as `kind`, a pydantic model or any type. Raises Unreadable that says what is wrong where."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = takewhile(lambda part: not (isinstance(part, str) and _OF_UNION.match(part)), first["loc"])
        where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in path)
        raise Unreadable(_KINDS.get(first["type"], "wrong"), where=where[:100] or "its beginning") from None
