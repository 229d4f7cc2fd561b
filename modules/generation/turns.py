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
    return _one_at_a_time(_begun_by_the_user(_told(list(messages), shows), shows), shows)


def _told(turns: list[Message], shows: Shows) -> list[Message]:
    head = _length_of_head(turns)
    if any(turn.role == "system" for turn in turns[head:]) and not shows(("system", "user", "assistant", "system", "user")):
        turns = [*turns[:head], *(replace(turn, role="user") if turn.role == "system" else turn for turn in turns[head:])]
    if head > 1 and not shows(("system", "system", "user")):
        turns, head = [replace(turns[0], content=_joined(turns[:head])), *turns[head:]], 1
    if head != 1 or shows(("system", "user") if len(turns) > 1 else ("system",)) or not shows(("user",)):
        return turns
    told, rest = replace(turns[0], role="user"), turns[1:]
    if rest and rest[0].role == "user":
        return [replace(rest[0], content=_joined([told, rest[0]])), *rest[1:]]
    return [told, *rest]


def _begun_by_the_user(turns: list[Message], shows: Shows) -> list[Message]:
    head = _length_of_head(turns)
    if head == len(turns) or turns[head].role != "assistant":
        return turns
    before: tuple[Role, ...] = ("system",) if head else ()
    if shows((*before, "assistant", "user")) or not shows((*before, "user", "assistant", "user")):
        return turns
    return [*turns[:head], replace(turns[head], role="user", content="", images=(), extra={}), *turns[head:]]


def _length_of_head(turns: Sequence[Message]) -> int:
    return next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))


_TWICE: dict[Role, tuple[Role, ...]] = {"user": ("user", "user"), "assistant": ("user", "assistant", "assistant", "user")}


def _one_at_a_time(turns: list[Message], shows: Shows) -> list[Message]:
    joined: list[Message] = []
    for turn in turns:
        last = joined[-1] if joined else None
        twice = _TWICE.get(turn.role)
        if last is None or last.role != turn.role or twice is None or "tool_calls" in last.extra or shows(twice):
            joined.append(turn)
        else:
            extra = {**last.extra, **turn.extra}
            joined[-1] = replace(last, content=_joined([last, turn]), images=(*last.images, *turn.images), extra=extra)
    return joined


def _joined(turns: Sequence[Message]) -> str:
    return "\n\n".join(turn.content for turn in turns if turn.content)
