"""Settings of a chat, and the seed of a reply that can be made again."""

from __future__ import annotations

import random

from modules.generation.sampling import SamplingParams
from modules.library.modes import Mode
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
