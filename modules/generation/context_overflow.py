"""What to do when a prompt does not fit: refuse it with the figures, or leave out the oldest turns."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal, NoReturn

from modules.errors import ContextTooLong, UserError
from modules.generation.types import GenerationRequest, Messages

Overflow = Literal["refuse", "drop_oldest"]
DEFAULT_CONTEXT = 4096
"""The context length of models whose files do not say."""
_LETTERS = 16
"""For each token of the context: three or four times what most texts have."""
_AT_ONCE = 1 << 16
"""Letters that are tokenized in some milliseconds, whatever the context."""
_AT_THE_CUT = 64
"""Tokens by which a text that is cut anywhere may be longer than the same part of the whole."""


def window(request: GenerationRequest, context_length: int) -> tuple[int, Overflow]:
    """(the tokens that prompt and reply may have together, what happens to a longer prompt).

    A truncation length below the model's context asks for dropping by itself. Raises UserError where it has no room for a prompt.
    """
    asked = request.sampling.truncation_length
    if asked == 1:
        raise UserError("One token is no room for a prompt and its reply. Take a longer one.", param="truncation_length")
    return (asked, "drop_oldest") if 0 < asked < context_length else (context_length, request.overflow)


def room_for_prompt(context_length: int, max_tokens: int) -> int:
    """How long a prompt may be after turns were left out: the reply keeps max_tokens, but at most a quarter of the context."""
    return context_length - max(1, min(max_tokens, context_length // 4))


def fit_messages(
    messages: Messages, count: Callable[[Messages], float], context_length: int, max_tokens: int, overflow: Overflow
) -> tuple[Messages, int]:
    """(messages that fit, how many were left out). Raises ContextTooLong.

    count: the tokens of a conversation as the model will see it, infinite for one that is `far_too_long`. Whole turns go, the oldest first: a user's message with
    all that answers it. System messages at the beginning and the last turn stay.
    """
    if overflow == "refuse":
        _refuse_unless_it_fits(len(messages), context_length, "messages")
        _refuse_unless_it_fits(count(messages), context_length)
        return messages, 0
    room = room_for_prompt(context_length, max_tokens)
    if len(messages) <= room and count(messages) <= room:
        return messages, 0
    head, starts = _turns(messages)
    first = bisect_left(starts, len(messages) - room)  # each message takes a token at least

    def cut(at: int) -> Messages:
        return messages[:head] + messages[starts[at] :]

    kept = bisect_left(range(len(starts)), True, lo=min(first, len(starts)), key=lambda at: count(cut(at)) <= room)
    if kept < len(starts):
        return cut(kept), len(messages) - len(cut(kept))
    least = cut(-1) if starts else messages
    _refuse_unless_it_fits(count(least), context_length)
    return least, len(messages) - len(least)


def fit_tokens(
    tokens: list[int], context_length: int, max_tokens: int, overflow: Overflow, *, keep_first: int = 0
) -> list[int]:
    """`tokens`, or their end after the first `keep_first` (a begin-of-text token). Raises ContextTooLong."""
    if overflow == "refuse":
        _refuse_unless_it_fits(len(tokens), context_length)
        return tokens
    room = room_for_prompt(context_length, max_tokens)
    if len(tokens) <= room:
        return tokens
    return tokens[:keep_first] + tokens[len(tokens) - room + keep_first :]


def far_too_long(text: str, encode: Callable[[str], Sequence[int]], context_length: int) -> bool:
    """Whether the beginning of `text` alone is longer than the context: the rest is not tokenized then, as that takes minutes.

    encode: token ids of a text.
    """
    beginning = text[: max(_LETTERS * context_length, _AT_ONCE)]
    return len(beginning) < len(text) and len(encode(beginning)) > context_length + _AT_THE_CUT


def refuse_far_too_long(context_length: int) -> NoReturn:
    """Raises ContextTooLong for a prompt whose length is not known."""
    raise ContextTooLong(
        f"The prompt is many times longer than the model's context, which holds {context_length} tokens with the reply. "
        "Shorten it.",
        param="messages",
    )


def _refuse_unless_it_fits(length: float, context_length: int, of: str = "tokens") -> None:
    if length == math.inf:
        refuse_far_too_long(context_length)
    if length >= context_length:
        raise ContextTooLong(
            f"The prompt has {length} {of}, and the model's context holds {context_length} with the reply. "
            "Shorten it, or load the model with a larger context.",
            param="messages",
            tokens=int(length),
        )


def _turns(messages: Messages) -> tuple[int, list[int]]:
    """(where the system messages end, where a later turn starts): what may go lies between the two."""
    head = next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
    starts = [at for at, message in enumerate(messages) if message.role == "user" and at > head]
    return head, starts
