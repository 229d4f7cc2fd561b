"""The history of 2023: {"internal": [[question, reply], …], "visible": […]}, and the older {"data", "data_visible"}."""

from __future__ import annotations

import html
import json
from typing import Any

from modules.chats.portable import Lenient, PortableChat, PortableMessage, chat_of, checked
from modules.errors import UserError

NAME = "pairs"
SUFFIX = ".json"
BEGINNING = "<|BEGIN-VISIBLE-CHAT|>"
"""Stands in place of a question before a greeting."""


class _File(Lenient):
    internal: list[tuple[str, str]] | None = None
    visible: list[tuple[str, str]] | None = None
    data: list[tuple[str, str]] | None = None
    data_visible: list[tuple[str, str]] | None = None


def fits(value: Any) -> bool:
    return isinstance(value, dict) and bool({"internal", "visible", "data", "data_visible"} & set(value))


def read(value: Any) -> list[PortableChat]:
    """What the model saw; where that is missing, what people saw. Raises UserError."""
    file = checked(_File, value, "history of questions and replies")
    pairs = file.internal or file.data
    if not pairs:
        shown = file.visible or file.data_visible or []
        pairs = [(html.unescape(question), html.unescape(reply)) for question, reply in shown]
    turns = []
    for question, reply in pairs:
        if not question.startswith(BEGINNING):
            turns.append(PortableMessage("user", question))
        turns.append(PortableMessage("assistant", reply))
    if not pairs:
        raise UserError("There is no message in this file.")
    return [chat_of(turns)]


def write(chat: PortableChat) -> str:
    """The branch in front. Other programs show the visible texts as HTML, so these are escaped."""
    pairs: list[tuple[str, str]] = []
    waiting: str | None = None
    for turn in chat.branch():
        if turn.role == "user":
            if waiting is not None:
                pairs.append((waiting, ""))
            waiting = turn.content
        elif turn.role == "assistant":
            pairs.append((waiting if waiting is not None else "" if pairs else BEGINNING, turn.content))
            waiting = None
    if waiting is not None:
        pairs.append((waiting, ""))
    visible = [("" if question == BEGINNING else html.escape(question), html.escape(reply)) for question, reply in pairs]
    return json.dumps({"internal": pairs, "visible": visible}, ensure_ascii=False, indent=1)
