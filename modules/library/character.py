"""A character: who the model plays, as one frozen value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modules.library.lore import LoreBook


@dataclass(frozen=True)
class Character:
    """Who the model plays. user: what it calls the person it speaks with; empty is the person's own name.

    name: what it is called by people, in any letters; the file that it is kept in has a name of its own.
    context: who the character is and where; greeting: what it says first; more_greetings: other ways to begin;
    example_dialogue: lines that show how it speaks; turn_template: the form of a turn where it is not "Name: text".

    What only cards have: personality and scenario are told after the context; system_prompt goes before it, and post_history
    after the chat, where {{original}} stands for what the chat itself says; nickname: what it is called in its texts in place of
    its name; book: its lore; others: what has no effect here, as the card says it, kept for its export.
    Texts may say {{user}} and {{char}}, or <USER> and <BOT>.
    """

    name: str
    context: str = ""
    greeting: str = ""
    example_dialogue: str = ""
    user: str = ""
    turn_template: str = ""
    more_greetings: tuple[str, ...] = ()
    personality: str = ""
    scenario: str = ""
    system_prompt: str = ""
    post_history: str = ""
    nickname: str = ""
    book: LoreBook | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spoken(self) -> str:
        """The name that it has in a conversation."""
        return self.nickname or self.name

    def filled(self, text: str, user: str) -> str:
        """A text of the character with the names put in."""
        return with_names(re.sub("<char>", "{{char}}", text, flags=re.IGNORECASE), user=user, char=self.spoken)

    def greetings(self, user: str) -> list[str]:
        """What it may say first, the names put in."""
        return [self.filled(text, user) for text in (self.greeting, *self.more_greetings) if text.strip()]


def with_names(text: str, *, user: str, char: str) -> str:
    """`text` with {{user}} and <USER>, {{char}} and <BOT> replaced, and without what cards write as a {{// comment}}.

    >>> with_names("{{char}} greets <USER>.{{// warmly}}", user="Ann", char="Bob")
    'Bob greets Ann.'
    """
    names = {"{{user}}": user, "<user>": user, "{{char}}": char, "<bot>": char}
    return _NAMES.sub(lambda found: names.get(found[0].lower(), ""), text)


_NAMES = re.compile(r"\{\{(?:user|char|(?://|comment:|hidden_key:)[^{}]*)\}\}|<(?:user|bot)>", re.IGNORECASE)
