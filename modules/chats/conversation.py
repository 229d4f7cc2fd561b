"""From a branch of a chat and its settings to the request that continues it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from modules.chats.records import StoredMessage
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, Message
from modules.settings.declare import Settings, setting


class ChatSettings(Settings):
    """What one chat can set for itself."""

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
    continue_reply: bool = False,
) -> GenerationRequest:
    """What the model is asked when `messages` is the branch so far.

    template: Jinja source, None for the model's own. continue_reply: go on with the last message, which is the model's.
    Raises UserError where there is nothing to answer or to continue.
    """
    turns = [Message(message.role, message.content) for message in messages]
    if not turns:
        raise UserError("There is nothing to answer yet: write a message first.")
    if continue_reply and turns[-1].role != "assistant":
        raise UserError("Only a reply can be continued.")
    if not continue_reply and settings.reply_start:
        turns.append(Message("assistant", settings.reply_start))
    if settings.system_prompt:
        turns.insert(0, Message("system", settings.system_prompt))
    return GenerationRequest(
        prompt=tuple(turns),
        sampling=fixed_seed(sampling),
        template=template,
        continue_reply=continue_reply or bool(settings.reply_start),
        adapter=settings.adapter or None,
        adapter_strength=settings.adapter_strength,
        overflow="drop_oldest",
    )
