"""What the model sees: the exact prompt, what the template put into it, what was left out, and how full the context is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from modules.chats.records import StoredMessage
from modules.errors import ContextTooLong, UserError
from modules.generation.context_overflow import room_for_prompt
from modules.generation.stream import EventStream
from modules.generation.template import takes_as_they_are, template_problem
from modules.generation.types import GenerationRequest, LoadedModel, Message, RenderedPrompt
from modules.i18n.sentences import said
from modules.library.lore import Entered
from modules.library.modes import counted_by, lore_of
from modules.services.preferences import Preferences
from modules.services.reply_builder import ReplyService, ReplySettings, draft_of


@dataclass(frozen=True)
class Question:
    """What a model is asked, and what of the character's lore entered."""

    request: GenerationRequest
    lore: Sequence[Entered] = ()


Piece = list[str]
"""[kind, text]; kind: template, system, user, assistant or tool."""


class PromptPreview(ReplyService):
    """Prompts as the model gets them."""

    def context_of_draft(
        self, chat_id: int | None, after: int | None, content: str, settings: dict[str, object] | None
    ) -> dict[str, Any]:
        """How full the context would be (see `context`); asked for all the time, it loads no model that was unloaded."""
        with self.app.manager.lease() as model:
            question = self._of_draft(model, chat_id, after, content, settings)
            return context(model, question.request if question else None)

    def prompt_of_draft(
        self, chat_id: int | None, after: int | None, content: str, settings: dict[str, object] | None
    ) -> dict[str, Any]:
        """The prompt (see `prompt`) if `content` were sent after message `after` now. Raises UserError where there is nothing yet."""
        with self.app.manager.lease(wait=True) as model:
            question = self._of_draft(model, chat_id, after, content, settings)
            if question is None:
                raise UserError("There is nothing to show yet: write a message first.")
            return prompt(model, question)

    def _of_draft(
        self, model: LoadedModel, chat_id: int | None, after: int | None, content: str, settings: dict[str, object] | None
    ) -> Question | None:
        chat = self.builder.new_chat(settings) if chat_id is None else self.history.chats.get(chat_id)
        path = self.history.messages.path(chat.id, after) if chat.id and after is not None else []
        branch = [node.message for node in path]
        if content.strip():
            branch.append(draft_of(chat, after, content))
        return self._question(model, self.builder.settings(chat), branch) if branch else None

    def prompt_of_message(self, message_id: int) -> dict[str, Any]:
        """The prompt (see `prompt`) that a reply was made by, as far as it can be made again; for other messages, of their answer."""
        with self.app.manager.lease(wait=True) as model:
            return prompt(model, self._of_message(model, message_id))

    def _of_message(self, model: LoadedModel, message_id: int) -> Question:
        message = self.history.messages.get(message_id)
        chat = self.history.chats.get(message.chat_id)
        if message.role != "assistant":
            return self._question(model, self.builder.settings(chat), self.builder.branch(chat.id, message.id))
        if message.parent_id is None:
            raise UserError("This message begins the chat: no prompt came before it.")
        how = self.builder.settings_of_reply(chat, message)
        return self._question(model, how, self.builder.branch(chat.id, message.parent_id))

    def _question(self, model: LoadedModel, how: ReplySettings, branch: Sequence[StoredMessage]) -> Question:
        character = self.builder.requests.character(how.settings)
        said = [Message(message.role, message.content) for message in branch]
        user = self.of(Preferences).user_name
        lore = lore_of(character, said, user=user, count=counted_by(model))
        return Question(self.builder.request(model, how, branch), lore)

    def impersonate(self, chat_id: int | None, after: int | None, begun: str) -> EventStream:
        """The user's next message, which begins with `begun`, written by the model. Raises UserError."""
        if chat_id is None or after is None:
            raise UserError("There is no conversation yet in which your part could be written.")
        chat = self.history.chats.get(chat_id)
        branch = self.builder.branch(chat_id, after)
        with self.app.manager.lease(wait=True) as model:
            request = self.builder.request(model, self.builder.settings(chat), branch, as_user=begun)
            return model.stream(replace(request, logprobs=None))


def context(model: LoadedModel, request: GenerationRequest | None) -> dict[str, Any]:
    """How many tokens the prompt has, how many the context holds, how many the reply may take, and what will be left out.

    over: not even the last message fits, and it would be refused.
    """
    view: dict[str, Any] = {"context": model.context_length, "tokens": 0, "reply": 0, "dropped": 0, "over": False}
    if request is None:
        return view
    try:
        rendered = model.render(request)
    except ContextTooLong as error:
        return {**view, "tokens": error.tokens or model.context_length, "over": True}
    used = len(rendered.tokens)
    reply = min(request.sampling.max_tokens, model.context_length - used)
    return {**view, "tokens": used, "reply": max(0, reply), "dropped": rendered.dropped_messages}


def prompt(model: LoadedModel, question: Question) -> dict[str, Any]:
    """The exact prompt in pieces, its token ids, the lore in it, and the messages that do not fit. Raises UserError."""
    request = question.request
    rendered = model.render(request)
    left_out, kept = left_out_of(request, rendered.dropped_messages)
    source = request.template or model.chat_template
    return {
        **context(model, request),
        "room": room_for_prompt(model.context_length, request.sampling.max_tokens),
        "pieces": pieces(rendered, kept),
        "lore": [{"title": one.title, "key": one.key, "text": one.text} for one in question.lore],
        "left_out": [[message.role, message.content] for message in left_out],
        "ids": list(rendered.tokens),
        "problem": said(problem_of(model, request) or "") or None,
        "moved": bool(source) and not takes_as_they_are(source, kept),
    }


def left_out_of(request: GenerationRequest, dropped: int) -> tuple[Sequence[Message], Sequence[Message]]:
    """(messages that are left out, those that stay): the oldest turns go, the system prompt stays."""
    turns = [part for part in request.prompt if isinstance(part, Message)] if not isinstance(request.prompt, str) else []
    if not dropped:
        return [], turns
    head = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
    return turns[head : head + dropped], turns[:head] + turns[head + dropped :]


def pieces(rendered: RenderedPrompt, messages: Sequence[Message]) -> list[Piece]:
    """The prompt, told apart into what people and the model said and what the template put around it."""
    found: list[Piece] = []
    at = 0
    text = rendered.text
    for message in messages:
        content = next((form for form in (message.content, message.content.strip()) if form and form in text[at:]), None)
        if content is None:
            continue
        begin = text.index(content, at)
        if begin > at:
            found.append(["template", text[at:begin]])
        found.append([message.role, content])
        at = begin + len(content)
    if at < len(text):
        found.append(["template" if messages else "user", text[at:]])
    return found


def problem_of(model: LoadedModel, request: GenerationRequest | None = None) -> str | None:
    """What is wrong with the template of a request, or of the model, as a sentence."""
    source = request.template if request is not None and request.template else model.chat_template
    return template_problem(source) if source else None
