"""Replies that people marked: good examples and preferences, as rows to train on.

`extra["good"]` marks a good example; `extra["better_than"]` lists the versions that a reply was chosen over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from modules.chats.records import StoredMessage
from modules.chats.store import ChatHistory
from modules.errors import UserError

Kind = Literal["examples", "preferences"]
Row = dict[str, Any]


class Feedback:
    """The marks of one user."""

    def __init__(self, history: ChatHistory) -> None:
        self._history = history

    def mark_good(self, message_id: int, good: bool) -> StoredMessage:
        """Mark a finished reply as a good example, or take the mark away. Raises UserError."""
        self._finished_reply(message_id)
        return self._history.messages.annotate(message_id, {"good": good or None})

    def prefer(self, chosen: int, rejected: int, preferred: bool = True) -> StoredMessage:
        """Mark a reply as better than another version of it, or take that back. Raises UserError."""
        better, worse = self._finished_reply(chosen), self._finished_reply(rejected)
        if chosen == rejected or better.chat_id != worse.chat_id or better.parent_id != worse.parent_id:
            raise UserError("A reply can only be better than another version of the same reply.")
        self._set_preferred(worse, chosen, False)
        return self._set_preferred(better, rejected, preferred)

    def _set_preferred(self, message: StoredMessage, other: int, preferred: bool) -> StoredMessage:
        over = [id_ for id_ in message.extra.get("better_than", ()) if id_ != other]
        if preferred:
            over.append(other)
        return self._history.messages.annotate(message.id, {"better_than": over or None})

    def _finished_reply(self, message_id: int) -> StoredMessage:
        message = self._history.messages.get(message_id)
        if message.role != "assistant" or message.state == "streaming" or not message.content.strip():
            raise UserError("Only a finished reply can be marked.")
        return message

    def counts(self) -> dict[Kind, int]:
        """How many rows the user has marked."""
        return {"examples": sum(1 for _ in self.examples()), "preferences": sum(1 for _ in self.preferences())}

    def rows(self, kind: Kind) -> Iterator[Row]:
        """The marked rows of all chats, oldest first."""
        return self.examples() if kind == "examples" else self.preferences()

    def examples(self) -> Iterator[Row]:
        """{"messages": [{"role", "content"}, …]}: the conversation up to each good reply."""
        for message in self._history.messages.marked("good"):
            yield {"messages": [*self._before(message), _turn(message)]}

    def preferences(self) -> Iterator[Row]:
        """{"prompt": [turns], "chosen": [turn], "rejected": [turn]}, as TRL reads them: one for each pair."""
        for chosen in self._history.messages.marked("better_than"):
            before = self._before(chosen)
            for rejected in self._versions(chosen):
                yield {"prompt": before, "chosen": [_turn(chosen)], "rejected": [_turn(rejected)]}

    def _versions(self, chosen: StoredMessage) -> Iterator[StoredMessage]:
        """Those that it was chosen over and that are still there."""
        for id_ in chosen.extra["better_than"]:
            try:
                rejected = self._history.messages.get(id_)
            except UserError:
                continue
            if (rejected.chat_id, rejected.parent_id) == (chosen.chat_id, chosen.parent_id):
                yield rejected

    def _before(self, message: StoredMessage) -> list[Row]:
        """The turns that a reply answers, the system prompt that it was made with among them."""
        path = [node.message for node in self._history.messages.path(message.chat_id, leaf=message.id)][:-1]
        runs = message.extra.get("runs")
        settings = runs[-1].get("settings", {}) if runs else self._history.chats.get(message.chat_id).settings
        system = settings.get("system_prompt")
        return ([{"role": "system", "content": system}] if system else []) + [_turn(turn) for turn in path]


def _turn(message: StoredMessage) -> Row:
    return {"role": message.role, "content": message.content}


def as_jsonl(found: Iterable[Row]) -> str:
    """One row on each line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
