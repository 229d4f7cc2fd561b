"""The same message answered in two or three ways, side by side: versions of one reply until one is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from modules.chats.records import Chat, PathMessage, StoredMessage
from modules.chats.replies import Asked
from modules.errors import UserError
from modules.services.reply_builder import ReplyService, ReplySettings, draft_of

MOST = 3


@dataclass(frozen=True)
class Column:
    """What one column does otherwise than the chat: None is as the chat has it, an empty adapter the base model."""

    adapter: str | None = None
    adapter_strength: float | None = None
    preset: str | None = None
    template: str | None = None

    def changes(self) -> dict[str, Any]:
        """Only what says something, as it is kept."""
        return {key: value for key, value in vars(self).items() if value is not None}


class Compare(ReplyService):
    """Several replies to one message at once, of which one is kept."""

    def begin(
        self,
        columns: Sequence[Column],
        *,
        chat_id: int | None,
        after: int | None,
        content: str,
        settings: dict[str, object] | None = None,
    ) -> list[StoredMessage]:
        """Answer in each column's way: `content` said after message `after`, or, without it, what the user said there last.

        All replies run at once, in the model's batch. They are versions of each other. Raises UserError; nothing is kept then.
        """
        if not 2 <= len(columns) <= MOST:
            raise UserError(f"Compare two or three ways, not {len(columns)}.")
        chat = self.builder.new_chat(settings) if chat_id is None else self.history.chats.get(chat_id)
        branch = self.builder.branch(chat.id, after) if chat.id else []
        draft = None
        if content.strip():
            draft = draft_of(chat, branch[-1].id if branch else None, content)
            branch = [*branch, draft]
        else:
            while branch and branch[-1].role == "assistant":
                branch.pop()
        if not branch:
            raise UserError("There is nothing to answer yet: write a message first.")
        ways = [self._settings_in(self.builder.settings(chat), column) for column in columns]
        with self.app.manager.lease(wait=True) as model:
            requests = [self.builder.request(model, how, branch) for how in ways]
            seed = requests[0].sampling.seed  # one for all: what differs between the columns is what was chosen to differ
            requests = [
                replace(one, sampling=one.sampling.changed({"seed": seed})) if how.sampling.seed < 0 else one
                for one, how in zip(requests, ways, strict=True)
            ]

            def make() -> list[StoredMessage]:
                kept, said = self.builder.keep_draft(chat, draft) if draft else (chat, branch[-1])
                group = time.time()
                made = [
                    self.builder.add_reply(model, kept, said.id, how, request, compare={"group": group, **column.changes()})
                    for how, request, column in zip(ways, requests, columns, strict=True)
                ]
                self.history.messages.select(made[0].id)
                return made

            jobs = [Asked(one, how.preset) for one, how in zip(requests, ways, strict=True)]
            return self.replies.begin_all(model, jobs, make)

    def _settings_in(self, how: ReplySettings, column: Column) -> ReplySettings:
        """How a column of the user answers. Raises UserError for an adapter, preset or template that is not there."""
        changes: dict[str, Any] = {}
        if column.adapter is not None:
            changes["adapter"] = column.adapter
        if column.adapter_strength is not None:
            changes["adapter_strength"] = column.adapter_strength
        if column.template is not None:
            changes["template"] = column.template
        sampling, preset = how.sampling, how.preset
        if column.preset is not None:
            sampling, preset = self.app.presets.of(self.owner).read(column.preset), column.preset
        return ReplySettings(how.settings.changed(changes) if changes else how.settings, sampling, preset)

    def columns_beside(self, node: PathMessage) -> list[PathMessage]:
        """The replies that stand beside `node` in columns, itself included, in their order; none where it is not compared."""
        group = _group(node.message)
        if group is None:
            return []
        versions = [self.history.messages.get(id_) for id_ in node.versions]
        return [PathMessage(message, node.versions) for message in versions if _group(message) == group]

    def keep(self, message_id: int) -> Chat:
        """Go on with one of the columns. The others end where they are, and stay as versions of it."""
        message = self.history.messages.get(message_id)
        group = _group(message)
        if group is None:
            raise UserError("This reply is not compared with others any more.")
        path = self.history.messages.path(message.chat_id, leaf=message_id)
        for node in self.columns_beside(path[-1]):
            if node.message.id != message_id:
                self.replies.stop(node.message.id)
            self.history.messages.annotate(node.message.id, {"compare": None})
        return self.history.messages.select(message_id)


def _group(message: StoredMessage) -> float | None:
    return (message.extra.get("compare") or {}).get("group")
