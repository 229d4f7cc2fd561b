"""Replies that people marked: good examples and preferences, as rows to train on.

`extra["good"]` marks a good example; `extra["better_than"]` lists the versions that a reply was chosen over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from modules.chats.records import StoredMessage
from modules.chats.store import ChatStore
from modules.errors import UserError

Kind = Literal["examples", "preferences"]
Row = dict[str, Any]


def mark_good(store: ChatStore, owner: str, message_id: int, good: bool) -> StoredMessage:
    """Mark a finished reply as a good example, or take the mark away. Raises UserError."""
    _finished_reply(store, owner, message_id)
    return store.annotate(owner, message_id, {"good": good or None})


def prefer(store: ChatStore, owner: str, chosen: int, rejected: int, preferred: bool = True) -> StoredMessage:
    """Mark a reply as better than another version of it, or take that back. Raises UserError."""
    better, worse = _finished_reply(store, owner, chosen), _finished_reply(store, owner, rejected)
    if chosen == rejected or better.chat_id != worse.chat_id or better.parent_id != worse.parent_id:
        raise UserError("A reply can only be better than another version of the same reply.")
    _set_preferred(store, owner, worse, chosen, False)
    return _set_preferred(store, owner, better, rejected, preferred)


def _set_preferred(store: ChatStore, owner: str, message: StoredMessage, other: int, preferred: bool) -> StoredMessage:
    over = [id_ for id_ in message.extra.get("better_than", ()) if id_ != other]
    if preferred:
        over.append(other)
    return store.annotate(owner, message.id, {"better_than": over or None})


def _finished_reply(store: ChatStore, owner: str, message_id: int) -> StoredMessage:
    message = store.message(owner, message_id)
    if message.role != "assistant" or message.state == "streaming" or not message.content.strip():
        raise UserError("Only a finished reply can be marked.")
    return message


def counts(store: ChatStore, owner: str) -> dict[Kind, int]:
    """How many rows `owner` has marked."""
    return {"examples": sum(1 for _ in examples(store, owner)), "preferences": sum(1 for _ in preferences(store, owner))}


def rows(store: ChatStore, owner: str, kind: Kind) -> Iterator[Row]:
    """The marked rows of all chats, oldest first."""
    return examples(store, owner) if kind == "examples" else preferences(store, owner)


def examples(store: ChatStore, owner: str) -> Iterator[Row]:
    """{"messages": [{"role", "content"}, …]}: the conversation up to each good reply."""
    for message in store.marked(owner, "good"):
        yield {"messages": [*_before(store, owner, message), _turn(message)]}


def preferences(store: ChatStore, owner: str) -> Iterator[Row]:
    """{"prompt": [turns], "chosen": [turn], "rejected": [turn]}, as TRL reads them: one for each pair."""
    for chosen in store.marked(owner, "better_than"):
        before = _before(store, owner, chosen)
        for rejected in _versions(store, owner, chosen):
            yield {"prompt": before, "chosen": [_turn(chosen)], "rejected": [_turn(rejected)]}


def _versions(store: ChatStore, owner: str, chosen: StoredMessage) -> Iterator[StoredMessage]:
    """Those that it was chosen over and that are still there."""
    for id_ in chosen.extra["better_than"]:
        try:
            rejected = store.message(owner, id_)
        except UserError:
            continue
        if (rejected.chat_id, rejected.parent_id) == (chosen.chat_id, chosen.parent_id):
            yield rejected


def _before(store: ChatStore, owner: str, message: StoredMessage) -> list[Row]:
    """The turns that a reply answers, the system prompt that it was made with among them."""
    path = [node.message for node in store.path(owner, message.chat_id, leaf=message.id)][:-1]
    runs = message.extra.get("runs")
    settings = runs[-1].get("settings", {}) if runs else store.chat(owner, message.chat_id).settings
    system = settings.get("system_prompt")
    return ([{"role": "system", "content": system}] if system else []) + [_turn(turn) for turn in path]


def _turn(message: StoredMessage) -> Row:
    return {"role": message.role, "content": message.content}


def as_jsonl(found: Iterable[Row]) -> str:
    """One row on each line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
