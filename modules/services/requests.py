"""Request builder: a conversation, the settings of its chat and sampling parameters as the request to one model.

Used by the page, /v1/chat/completions, /v1/responses and the API of July 2023. Plain text to continue has nothing to resolve:
the notebook, /v1/completions and /api/v1/generate make their GenerationRequest themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from modules.chats.conversation import ChatSettings
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.tool_calls import tool_format
from modules.generation.types import GenerationRequest, LoadedModel, Message, Messages
from modules.library.character import Character
from modules.library.modes import counted_by, staged
from modules.services.base import Service


@dataclass(frozen=True)
class Conversation:
    """Messages to answer, oldest first; `images` only where the model supports them.

    user: the name of the person. character: in place of the one that the settings name by its id; programs name one by its name.
    continue_reply: the last message is the beginning of the reply. as_user: write the person's next message, which begins so.
    tools: functions that the model may call, in the form of chat templates; variables: further ones of the chat template.
    """

    messages: Messages
    user: str = ""
    character: Character | None = None
    continue_reply: bool = False
    as_user: str | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)


class RequestBuilder(Service):
    """Builds requests for a leased model: template, mode, character, lore and tools are resolved here, once."""

    def build(
        self,
        model: LoadedModel,
        conversation: Conversation,
        settings: ChatSettings,
        sampling: SamplingParams,
        *,
        overflow: Literal["refuse", "drop_oldest"] = "refuse",
        logprobs: int | None = None,
    ) -> GenerationRequest:
        """The request to `model` and no other. overflow, logprobs: as in GenerationRequest.

        Raises NotFound, NoChatTemplate, and UserError for what the model or its template cannot do.
        """
        if logprobs is not None and not model.capabilities.logprobs:
            raise UserError(f"{model.name} cannot report log-probabilities with its loader.", param="logprobs")
        template = self.template(model, settings)
        variables = dict(conversation.variables)
        if conversation.tools:
            form = tool_format(template or model.chat_template)
            if form is None:
                raise UserError(
                    f"The chat template of {model.name} has no place for tools. Choose another model.", param="tools"
                )
            variables["tools"] = list(conversation.tools)
            sampling = sampling.changed({"skip_special_tokens": not form.special})
        as_user = conversation.as_user
        begins_reply = bool(settings.reply_start) and not conversation.continue_reply and as_user is None
        character = conversation.character or self.character(settings)
        system, messages = _system_apart(conversation.messages, settings, character)
        stage = staged(
            (*messages, Message("assistant", settings.reply_start)) if begins_reply else messages,
            settings.mode,
            character,
            user=conversation.user,
            system=system,
            template=template,
            own_template=model.chat_template,
            command=settings.command,
            speaker="character" if as_user is None else "user",
            count=counted_by(model),
        )
        prompt, continue_reply = stage.messages, conversation.continue_reply or begins_reply
        if as_user is not None and (settings.mode == "instruct" or (as_user and settings.mode == "chat")):
            prompt, continue_reply = (*prompt, Message("user", as_user)), True
        return GenerationRequest(
            prompt=prompt,
            sampling=sampling.changed({"stop": (*sampling.stop, *stage.stop)}) if stage.stop else sampling,
            template=stage.template,
            template_variables=variables,
            continue_reply=continue_reply,
            adapter=settings.adapter or None,
            adapter_strength=settings.adapter_strength,
            logprobs=logprobs,
            overflow=overflow,
        )

    def template(self, model: LoadedModel, settings: ChatSettings) -> str | None:
        """Jinja source in place of the model's own chat template, None for its own. The mode chat needs none.

        Raises NotFound, NoChatTemplate.
        """
        if settings.mode == "chat" and not settings.template:
            return None
        chosen = self.app.templates.resolve_chat_template(model.name, model.chat_template, settings.template)
        return None if chosen.origin == "model" else chosen.source

    def character(self, settings: ChatSettings) -> Character | None:
        """The character that the settings name by its id. Raises NotFound, UserError."""
        return self.app.characters.read(self.owner, settings.character) if settings.character else None


def _system_apart(messages: Messages, settings: ChatSettings, character: Character | None) -> tuple[str, Messages]:
    """(system prompt, other messages): a play or a character has one before all turns; else system messages stay in place."""
    if settings.mode == "instruct" and character is None:
        return settings.system_prompt, messages
    told = (settings.system_prompt, *(message.content for message in messages if message.role == "system"))
    return "\n\n".join(text for text in told if text), tuple(message for message in messages if message.role != "system")
