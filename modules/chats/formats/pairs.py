"""The history of 2023: {"internal": [[question, reply], …], "visible": […]}, and the older {"data", "data_visible"}."""

from __future__ import annotations

import html
import json
from typing import Any

from modules.chats.portable import Lenient, PortableChat, PortableMessage, chat_of, checked
from modules.chats.remarks import Unreadable

NAME = "pairs"
SUFFIX = ".json"
BEGINNING = "<|BEGIN-VISIBLE-CHAT|>"
"""Stands in place of a question before a greeting."""


_Pairs = list[tuple[str | None, str | None]] | None


class _File(Lenient):
    internal: _Pairs = None
    visible: _Pairs = None
    data: _Pairs = None
    data_visible: _Pairs = None


def fits(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    lists = [value.get(name) for name in _File.model_fields if name in value]
    return any(isinstance(pairs, list) and all(isinstance(pair, list) for pair in pairs) for pairs in lists)


def read(value: Any) -> PortableChat:
    """What the model saw; where that is missing, what people saw. Raises Unreadable."""
    file = checked(_File, value)
    pairs = [(question or "", reply or "") for question, reply in file.internal or file.data or []]
    if not pairs:
        shown = file.visible or file.data_visible or []
        pairs = [(html.unescape(question or ""), html.unescape(reply or "")) for question, reply in shown]
    if not pairs:
        raise Unreadable("empty")
    turns = []
    for question, reply in pairs:
        if not question.startswith(BEGINNING):
            turns.append(PortableMessage("user", question))
        turns.append(PortableMessage("assistant", reply))
    return chat_of(turns)


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
