"""What the services that make replies share: the request of a reply, the record of how it is made, the message it is written into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modules.chats.conversation import ChatSettings, fixed_seed
from modules.chats.records import Chat, Figures, Run, StoredMessage, TokenStretch, pictures_of
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, LoadedModel, Message
from modules.services.base import Service
from modules.services.preferences import Preferences
from modules.services.requests import Conversation, RequestBuilder

ALTERNATIVES = 8
"""How many other tokens are kept for each place, where tokens are looked at."""


def settings_of(chat: Chat) -> ChatSettings:
    """A chat's own settings."""
    return settings_from(chat.settings)


def settings_from(values: Mapping[str, Any]) -> ChatSettings:
    """Settings as they were kept; keys of other versions are left out."""
    return ChatSettings.read({key: value for key, value in values.items() if key in ChatSettings.model_fields})


@dataclass(frozen=True)
class ReplySettings:
    """How a reply is made: the settings of its chat, the sampling, and the preset that the sampling comes from."""

    settings: ChatSettings
    sampling: SamplingParams
    preset: str | None


def settings_of_run(run: Run) -> ReplySettings:
    """The settings and the sampling of a run, its seed included."""
    return ReplySettings(settings_from(run.settings), SamplingParams.read(run.sampling), run.preset)


def runs_of(message: StoredMessage) -> list[Run]:
    """How a reply was made, stretch by stretch."""
    return [Run.read(values) for values in message.extra.get("runs", ())]


def with_runs(*runs: Run) -> dict[str, Any]:
    """The `extra` of a message that was made so."""
    return {"runs": [run.stored() for run in runs]}


def draft_of(chat: Chat, parent: int | None, content: str, pictures: Sequence[int] = ()) -> StoredMessage:
    """What a user is about to say, before it is kept. Raises UserError where it is empty."""
    content = content.strip()
    if not content and not pictures:
        raise UserError("The message is empty: write something first.")
    extra = {"pictures": list(pictures)} if pictures else {}
    return StoredMessage(0, chat.id, parent, "user", content, "whole", 0, 0, extra=extra)


class ReplyBuilder(Service):
    """Requests to a leased model, and the messages that replies are written into. Every refusal is a UserError."""

    def settings(self, chat: Chat) -> ReplySettings:
        """As the chat and its owner have it set now."""
        return ReplySettings(settings_of(chat), *self.of(Preferences).sampling)

    def settings_of_reply(self, chat: Chat, message: StoredMessage) -> ReplySettings:
        """How a reply was made last; as the chat is set now for replies of older versions."""
        runs = runs_of(message)
        return settings_of_run(runs[-1]) if runs else self.settings(chat)

    @property
    def requests(self) -> RequestBuilder:
        return self.of(RequestBuilder)

    def request(
        self,
        model: LoadedModel,
        how: ReplySettings,
        messages: Sequence[StoredMessage],
        *,
        continue_reply: bool = False,
        as_user: str | None = None,
    ) -> GenerationRequest:
        """The request to `model` that answers a branch (Conversation has the meaning of the rest). Raises UserError."""
        if not messages:
            raise UserError("There is nothing to answer yet: write a message first.")
        if continue_reply and messages[-1].role != "assistant":
            raise UserError("Only a reply can be continued.")
        preferences = self.of(Preferences)
        return self.requests.build(
            model,
            Conversation(
                tuple(self._message(model, message) for message in messages),
                user=preferences.user_name,
                continue_reply=continue_reply,
                as_user=as_user,
            ),
            how.settings,
            fixed_seed(how.sampling),
            overflow="drop_oldest",
            logprobs=ALTERNATIVES if preferences.token_view and model.capabilities.logprobs else None,
        )

    def _message(self, model: LoadedModel, stored: StoredMessage) -> Message:
        """A message as the model gets it: a chat with images can go on with a model that does not support them.

        An image that is left out is named where nothing else was said.
        """
        images = pictures_of(stored.extra)
        if not images or model.capabilities.images:
            return Message(stored.role, stored.content, self.history.pictures.images(images))
        return Message(stored.role, stored.content or "[picture]")

    def request_after(
        self, model: LoadedModel, chat: Chat, message: StoredMessage, how: ReplySettings, begun: str
    ) -> GenerationRequest:
        """The request to go on after `begun`, the beginning of the reply `message`."""
        branch = self.branch(chat.id, message.parent_id)
        plain = replace(how, settings=how.settings.changed({"reply_start": ""}))
        if not begun:
            return self.request(model, plain, branch)
        return self.request(model, plain, [*branch, replace(message, content=begun)], continue_reply=True)

    def exact_request(
        self, model: LoadedModel, message: StoredMessage, how: ReplySettings, tokens: Sequence[TokenStretch]
    ) -> GenerationRequest:
        """The request to go on after the last of `tokens`, token by token as they were, whatever their text would be cut into."""
        chat = self.history.chats.get(message.chat_id)
        last = tokens[-1]
        base = self.request_after(model, chat, message, how, message.content[: last.at])
        ids = (*model.render(base).tokens, *(token.id for token in last.tokens))
        return replace(base, prompt=ids, continue_reply=False, template=None)

    def run(
        self, model: LoadedModel, how: ReplySettings, request: GenerationRequest, *, at: int = 0, exact: bool = False
    ) -> Run:
        """What is kept of how a stretch of a reply was made, so that it can be made again."""
        sampling = how.sampling.changed({"seed": request.sampling.seed}).model_dump(mode="json", exclude_defaults=True)
        return Run(model.name, at, exact, how.settings.differences(), sampling, how.preset)

    def branch(self, chat_id: int, leaf: int | None) -> list[StoredMessage]:
        """The messages up to `leaf`. Raises UserError while the last one is being written."""
        if leaf is None:
            return []
        branch = [node.message for node in self.history.messages.path(chat_id, leaf)]
        if branch and branch[-1].state == "streaming":
            raise UserError("The reply is still being written: stop it or let it end first.")
        return branch

    def new_chat(self, settings: Mapping[str, object] | None) -> Chat:
        """A chat that is not kept yet: its id is 0."""
        return Chat(0, self.owner, "", False, False, 0, 0, None, ChatSettings.read(settings or {}).differences(), 0)

    def keep_draft(self, chat: Chat, draft: StoredMessage) -> tuple[Chat, StoredMessage]:
        """The draft as a message; a chat with the id 0 is made first."""
        kept = chat if chat.id else self.history.chats.create(settings=chat.settings)
        return kept, self.history.messages.add(kept.id, draft.parent_id, "user", draft.content, extra=draft.extra)

    def add_reply(
        self, model: LoadedModel, chat: Chat, parent: int, how: ReplySettings, request: GenerationRequest, **more: Any
    ) -> StoredMessage:
        """The message that a reply will be written into. more: what its `extra` holds besides how it was made."""
        extra = {**with_runs(self.run(model, how, request)), **more}
        start = how.settings.reply_start
        figures = Figures(opened="") if start else None  # the prompt ends with it
        return self.history.messages.add(chat.id, parent, "assistant", start, state="streaming", figures=figures, extra=extra)


class ReplyService(Service):
    """Base of the services that make replies."""

    @property
    def builder(self) -> ReplyBuilder:
        return self.of(ReplyBuilder)
