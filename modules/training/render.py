"""From a conversation to text in which the answers are marked, by the chat template that the model will be used with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules.generation.control_tokens import ControlTokens, render_with_marks
from modules.generation.types import Message, Messages
from modules.training.formats import Conversation

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """text, and (start, end) of the answers in it: what the model writes itself, end-of-turn words included.

    Control tokens that the data spells have a mark in them.
    ends_with_answer: the text stops where the last answer does, so an end-of-text token may follow.
    open: ends of answers behind which the template puts no word that ends them.
    """

    text: str
    answers: tuple[Span, ...]
    ends_with_answer: bool
    open: tuple[int, ...] = ()


def render(conversation: Conversation, template: str, special: Mapping[str, str], control: ControlTokens) -> list[Rendered]:
    """One text, or one for each answer where the template shows earlier turns otherwise than it first did.

    Some templates drop the reasoning of earlier answers: then each answer is learnt behind exactly the text that the model
    will see before it. special: bos_token and eos_token as text. Raises UserError where the template refuses.
    """
    messages = control.marked_messages(conversation.messages)
    variables = {**special, **control.marked_variables(conversation.variables)}
    last = max((at for at, message in enumerate(messages) if message.role == "assistant"), default=-1)
    whole = _render(template, messages, variables)
    found: list[_Answer] = []
    for at, message in enumerate(messages):
        if message.role != "assistant":
            continue
        upto = whole if at == len(messages) - 1 else _render(template, messages[: at + 1], variables)
        if at < last and not whole.startswith(upto.rstrip()):
            return _one_for_each_answer(messages, template, variables, special)
        if answer := _answer(template, messages, at, upto, variables, special):
            found.append(answer)
    at_end = last == len(messages) - 1 and bool(found)
    return [_rendered(whole[: found[-1].span[1]] if at_end else whole, found, at_end)]


def _one_for_each_answer(
    messages: Messages, template: str, variables: Mapping[str, Any], special: Mapping[str, str]
) -> list[Rendered]:
    texts = []
    for at, message in enumerate(messages):
        if message.role == "assistant":
            upto = _render(template, messages[: at + 1], variables)
            if answer := _answer(template, messages, at, upto, variables, special):
                texts.append(_rendered(upto[: answer.span[1]], [answer], True))
    return texts


@dataclass(frozen=True)
class _Answer:
    """ended: the template puts a word behind it."""

    span: Span
    ended: bool


def _rendered(text: str, answers: Sequence[_Answer], at_end: bool) -> Rendered:
    open = tuple(one.span[1] for one in answers if not one.ended)
    return Rendered(text, tuple(one.span for one in answers), at_end, open)


def _answer(
    template: str, messages: Messages, at: int, upto: str, variables: Mapping[str, Any], special: Mapping[str, str]
) -> _Answer | None:
    """Where message `at` stands in `upto`, which ends with it: from the end of what invites it to its last word.

    Words behind the end-of-text token are the template's, not the model's; nor are line breaks at the end.
    OpenAI's weight 0 marks an answer that is shown and not learnt.
    """
    message = messages[at]
    if message.extra.get("weight") in (0, False):
        return None
    if at == 0:
        start = max(upto.find(message.content.strip()), 0)
    else:
        invitation = _render(template, messages[:at], variables, add_generation_prompt=True)
        start = _common_length(invitation, upto)
    eos = special.get("eos_token", "")
    content = message.content.strip()
    tail = upto.rfind(content) + len(content) if content and content in upto[start:] else start
    stop = upto.find(eos, tail) if eos else -1
    end = stop + len(eos) if stop >= 0 else max(len(upto.rstrip()), tail)
    return _Answer((start, end), bool(upto[tail:end].strip())) if end > start else None


def _common_length(one: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _render(template: str, messages: Messages, variables: Mapping[str, Any], *, add_generation_prompt: bool = False) -> str:
    plain = tuple(Message(m.role, m.content, extra={k: v for k, v in m.extra.items() if k != "weight"}) for m in messages)
    return render_with_marks(template, plain, variables=variables, add_generation_prompt=add_generation_prompt)
