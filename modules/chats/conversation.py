"""From a branch of a chat and its settings to the request that continues it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from modules.chats.records import StoredMessage, pictures_of
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, Image, Message
from modules.library.character import Character
from modules.library.modes import Mode, about, staged
from modules.settings.declare import Settings, setting


class ChatSettings(Settings):
    """What one chat can set for itself."""

    mode: Mode = setting("instruct", group="Chat")
    """How the conversation is put to the model: instruct by its template, chat as lines with names, chat-instruct as both."""
    character: str = setting("", group="Chat")
    """Who the model plays: a character by name; empty is nobody."""
    command: str = setting("", group="Chat", lines=3)
    """What chat-instruct asks for, with <|character|> and <|prompt|>; empty is the usual request."""
    system_prompt: str = setting("", group="Chat", lines=4)
    """What the model is told before the conversation: who it is and how to answer."""
    template: str = setting("", group="Chat")
    """The chat template by name; empty takes the model's own."""
    reply_start: str = setting("", group="Chat", lines=2)
    """Every reply begins with this text, and the model goes on from there."""
    adapter: str = setting("", group="Chat")
    """The LoRA adapter that answers; empty is the base model."""
    adapter_strength: float = setting(1.0, min=0, max=2, step=0.05, group="Chat")
    """How strongly the adapter acts; 1 is as it was trained."""


def fixed_seed(sampling: SamplingParams) -> SamplingParams:
    """`sampling` with a seed that is known, so that the reply can be made again."""
    return sampling if sampling.seed >= 0 else sampling.changed({"seed": random.randrange(2**31)})


def request_for(
    messages: Sequence[StoredMessage],
    settings: ChatSettings,
    sampling: SamplingParams,
    *,
    template: str | None = None,
    own_template: str | None = None,
    character: Character | None = None,
    user: str = "",
    count: Callable[[str], int] = about,
    look: Callable[[StoredMessage], tuple[Image, ...]] = lambda message: (),
    continue_reply: bool = False,
    as_user: str | None = None,
) -> GenerationRequest:
    """What the model is asked when `messages` is the branch so far.

    template: Jinja source, None for own_template, the model's. character: who the chat's settings name; user: the name of the
    person; count: the tokens of a text. look: the pictures of a message that the model is shown. continue_reply: go on with the last message, which is the model's. as_user: write the person's next message, which
    begins with this.
    Raises UserError where there is nothing to answer or to continue.
    """
    turns = [_turn(message, look(message)) for message in messages]
    if not turns:
        raise UserError("There is nothing to answer yet: write a message first.")
    if continue_reply and turns[-1].role != "assistant":
        raise UserError("Only a reply can be continued.")
    if as_user is not None:
        settings = settings.changed({"reply_start": ""})
    if not continue_reply and settings.reply_start:
        turns.append(Message("assistant", settings.reply_start))
    stage = staged(
        turns,
        settings.mode,
        character,
        user=user,
        system=settings.system_prompt,
        template=template,
        own_template=own_template,
        command=settings.command,
        speaker="character" if as_user is None else "user",
        count=count,
    )
    told = stage.messages
    if as_user is not None and (settings.mode == "instruct" or (as_user and settings.mode == "chat")):
        told, continue_reply = (*told, Message("user", as_user)), True
    if stage.stop:
        sampling = sampling.changed({"stop": (*sampling.stop, *stage.stop)})
    return GenerationRequest(
        prompt=told,
        sampling=fixed_seed(sampling),
        template=stage.template,
        continue_reply=continue_reply or bool(settings.reply_start),
        adapter=settings.adapter or None,
        adapter_strength=settings.adapter_strength,
        overflow="drop_oldest",
    )


def _turn(message: StoredMessage, images: tuple[Image, ...]) -> Message:
    """A message as the model gets it; a picture that it cannot see is at least named where nothing else was said."""
    hidden = bool(pictures_of(message.extra)) and not images
    return Message(message.role, message.content or ("[picture]" if hidden else ""), images)
