"""What the model sees: the exact prompt, what the template put into it, what was left out, and how full the context is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from modules.chats.records import StoredMessage
from modules.errors import ContextTooLong, UserError
from modules.generation.context_overflow import room_for_prompt
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

    def of_draft(
        self, chat_id: int | None, after: int | None, content: str, settings: dict[str, object] | None
    ) -> Question | None:
        """What would be asked if `content` were sent after message `after` now; None where there is nothing yet."""
        chat = self.builder.new_chat(settings) if chat_id is None else self.history.chats.get(chat_id)
        path = self.history.messages.path(chat.id, after) if chat.id and after is not None else []
        branch = [node.message for node in path]
        if content.strip():
            branch.append(draft_of(chat, after, content))
        return self._question(self.builder.settings(chat), branch) if branch else None

    def of_message(self, message_id: int) -> Question:
        """The question that a reply was made by, as far as it can be made again; for other messages, the one that answers them."""
        message = self.history.messages.get(message_id)
        chat = self.history.chats.get(message.chat_id)
        if message.role != "assistant":
            return self._question(self.builder.settings(chat), self.builder.branch(chat.id, message.id))
        if message.parent_id is None:
            raise UserError("This message begins the chat: no prompt came before it.")
        how = self.builder.settings_of_reply(chat, message)
        return self._question(how, self.builder.branch(chat.id, message.parent_id))

    def _question(self, how: ReplySettings, branch: Sequence[StoredMessage]) -> Question:
        character = self.builder.character(how.settings)
        said = [Message(message.role, message.content) for message in branch]
        user = Preferences(self.app, self.owner).user_name
        lore = lore_of(character, said, user=user, count=counted_by(self.app.engine.model))
        return Question(self.builder.request(how, branch), lore)

    def context(self, request: GenerationRequest | None) -> dict[str, Any]:
        """How many tokens the prompt has, how many the context holds, how many the reply may take, and what will be left out.

        over: not even the last message fits, and it would be refused.
        """
        model = self.app.engine.model
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

    def view(self, question: Question) -> dict[str, Any]:
        """The exact prompt in pieces, its token ids, the lore in it, and the messages that do not fit. Raises UserError."""
        model, request = self.app.engine.model, question.request
        rendered = model.render(request)
        left_out, kept = left_out_of(request, rendered.dropped_messages)
        source = request.template or model.chat_template
        return {
            **self.context(request),
            "room": room_for_prompt(model.context_length, request.sampling.max_tokens),
            "pieces": pieces(rendered, kept),
            "lore": [{"title": one.title, "key": one.key, "text": one.text} for one in question.lore],
            "left_out": [[message.role, message.content] for message in left_out],
            "ids": list(rendered.tokens),
            "problem": said(problem_of(model, request) or "") or None,
            "moved": bool(source) and not takes_as_they_are(source, kept),
        }

    def impersonation(self, chat_id: int | None, after: int | None, begun: str) -> GenerationRequest:
        """The request to write the user's next message, which begins with `begun`. Raises UserError."""
        if chat_id is None or after is None:
            raise UserError("There is no conversation yet in which your part could be written.")
        chat = self.history.chats.get(chat_id)
        branch = self.builder.branch(chat_id, after)
        return replace(self.builder.request(self.builder.settings(chat), branch, as_user=begun), logprobs=None)


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
