"""A conversation in the order of turns that a chat template can show, so that nothing which was said is lost or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modules.generation.types import Message, Role

Shows = Callable[[tuple["Role", ...]], bool]
"""Whether a template renders turns of these roles and shows all of them."""


def fitted(messages: Sequence[Message], shows: Shows) -> list[Message]:
    """`messages`, changed only where the template would lose or refuse something, and does not once it is changed.

    What the system says goes before the words of the next user's turn; before a first reply stands an empty turn of the user;
    two turns of one speaker become one.
    """
    turns = list(messages)
    for step in (_told_once, _begun_by_the_user, _one_at_a_time, _told):
        turns = step(turns, shows)
    return turns


def _told_once(turns: list[Message], shows: Shows) -> list[Message]:
    """With the system at the beginning alone, and there in one turn."""
    head = _length_of_head(turns)
    if any(turn.role == "system" for turn in turns[head:]) and not shows(("system", "user", "assistant", "system", "user")):
        turns = [*turns[:head], *(replace(turn, role="user") if turn.role == "system" else turn for turn in turns[head:])]
    if head > 1 and not shows(("system", "system", "user")):
        turns = [replace(turns[0], content=_joined(turns[:head])), *turns[head:]]
    return turns


def _begun_by_the_user(turns: list[Message], shows: Shows) -> list[Message]:
    head = _length_of_head(turns)
    if head == len(turns) or turns[head].role != "assistant":
        return turns
    before: tuple[Role, ...] = ("system",) if head else ()
    if shows((*before, "assistant", "user")) or not shows((*before, "user", "assistant", "user")):
        return turns
    return [*turns[:head], replace(turns[head], role="user", content="", images=(), extra={}), *turns[head:]]


_TWICE: dict[Role, tuple[Role, ...]] = {"user": ("user", "user"), "assistant": ("user", "assistant", "assistant", "user")}


def _one_at_a_time(turns: list[Message], shows: Shows) -> list[Message]:
    said: list[list[Message]] = []
    for turn in turns:
        last = said[-1][-1] if said else None
        twice = _TWICE.get(turn.role)
        if last is None or last.role != turn.role or twice is None or "tool_calls" in last.extra or shows(twice):
            said.append([turn])
        else:
            said[-1].append(turn)
    return [together[0] if len(together) == 1 else _as_one(together) for together in said]


def _as_one(turns: list[Message]) -> Message:
    images = tuple(image for turn in turns for image in turn.images)
    return replace(turns[0], content=_joined(turns), images=images, extra={**turns[0].extra, **turns[-1].extra})


def _told(turns: list[Message], shows: Shows) -> list[Message]:
    """With a system's turn that is shown, or its text in a turn of the user."""
    if _length_of_head(turns) != 1:
        return turns
    told, rest = replace(turns[0], role="user"), turns[1:]
    # Some templates show the system with the last turn, and only if that is the user's.
    starts = [at for at, turn in enumerate(rest) if turn.role == "user"][-2:]
    end: tuple[Role, ...] = tuple(turn.role for turn in rest[starts[0] if starts else 0 :]) or ("user",)
    if not shows(end):  # what follows is not shown as it is either: the usual case decides
        end = ("user",)
    if shows(("system", *end) if rest else ("system",)) or not shows(end):
        return turns
    return _before_the_next(told, rest)


def _before_the_next(told: Message, rest: list[Message]) -> list[Message]:
    if rest and rest[0].role == "user":
        return [replace(rest[0], content=_joined([told, rest[0]])), *rest[1:]]
    return [told, *rest]


def _length_of_head(turns: Sequence[Message]) -> int:
    return next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))


def _joined(turns: Sequence[Message]) -> str:
    return "\n\n".join(turn.content for turn in turns if turn.content)
