"""What the chat history holds, as frozen values: a chat, a message with its figures, an entry of a list."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from modules.generation.types import Role, Token

State = Literal["streaming", "whole", "cut"]
"""streaming: being written; whole: ended by itself or by a limit; cut: stopped, failed, or the server died meanwhile."""
Ending = Literal["stop", "length", "stopped", "failed", "killed"]


@dataclass(frozen=True)
class Figures:
    """What a reply took and what made it. Seconds; error is the sentence why it failed; edited: people changed the text.

    opened: the mark of thinking that its prompt ended with, "" for none; None where that is not known (reasoning.segments).
    """

    tokens: int = 0
    tokens_per_second: float | None = None
    first_token: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    context_length: int | None = None
    dropped_messages: int = 0
    ending: Ending | None = None
    error: str | None = None
    adapter: str | None = None
    adapter_strength: float | None = None
    preset: str | None = None
    seed: int | None = None
    prompt_hash: str | None = None
    edited: bool = False
    opened: str | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Figures as stored; keys of other versions are left out."""
        return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})

    def stored(self) -> dict[str, Any]:
        """Only what says something."""
        return {key: value for key, value in vars(self).items() if value not in (None, 0, False)}


@dataclass(frozen=True)
class Run:
    """One stretch of a reply, and what was asked for to make it; a message keeps them in `extra["runs"]`, oldest first.

    at: where in the text it begins, in characters; 0 for an answer from its beginning. exact: it goes on from the tokens
    that are kept of the text before `at`, not from that text. settings: the chat's, as they were.
    """

    model: str
    at: int = 0
    exact: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A run as stored; keys of other versions are left out."""
        return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})

    def stored(self) -> dict[str, Any]:
        """Only what says something."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, 0, False, {})}


@dataclass(frozen=True)
class TokenStretch:
    """Tokens of a message with their probabilities; at: where in the text they begin, in characters."""

    at: int
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Chat:
    """One conversation. leaf: the last message of the branch that is shown; titled: people named it themselves."""

    id: int
    owner: str
    title: str
    titled: bool
    pinned: bool
    created: float
    updated: float
    leaf: int | None
    settings: Mapping[str, Any]
    revision: int


@dataclass(frozen=True)
class StoredMessage:
    """One message. Those with the same parent are versions of each other; a first message has none."""

    id: int
    chat_id: int
    parent_id: int | None
    role: Role
    content: str
    state: State
    created: float
    changed: float
    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    figures: Figures = Figures()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PathMessage:
    """A message on the shown branch, and the ids of all its versions, oldest first, itself included."""

    message: StoredMessage
    versions: tuple[int, ...]


class Place(NamedTuple):
    """Where a chat stands in the list: pinned ones first, then the latest."""

    pinned: bool
    updated: float
    id: int


@dataclass(frozen=True)
class ListedChat:
    """A row of the conversation list; found is the text around what was searched for, message_id where it stands."""

    id: int
    title: str
    pinned: bool
    updated: float
    running: bool = False
    found: str = ""
    message_id: int | None = None

    @property
    def place(self) -> Place:
        return Place(self.pinned, self.updated, self.id)


def pictures_of(extra: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that a message's `extra` names."""
    return tuple(id_ for id_ in extra.get("pictures", ()) if isinstance(id_, int))
