"""A character: who the model plays, as one frozen value."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Character:
    """Who the model plays. user: what it calls the person it speaks with; empty is the person's own name.

    context: who the character is and where; greeting: what it says first; more_greetings: other ways to begin;
    example_dialogue: lines that show how it speaks; turn_template: the form of a turn where it is not "Name: text".
    Texts may say {{user}} and {{char}}, or <USER> and <BOT>.
    """

    name: str
    context: str = ""
    greeting: str = ""
    example_dialogue: str = ""
    user: str = ""
    turn_template: str = ""
    more_greetings: tuple[str, ...] = ()

    def filled(self, text: str, user: str) -> str:
        """`text` with the names put in."""
        return with_names(text, user=user, char=self.name)

    def greetings(self, user: str) -> list[str]:
        """What it may say first, the names put in."""
        return [self.filled(text, user) for text in (self.greeting, *self.more_greetings) if text.strip()]


def with_names(text: str, *, user: str, char: str) -> str:
    """`text` with {{user}} and <USER>, {{char}} and <BOT> replaced.

    >>> with_names("{{char}} greets <USER>.", user="Ann", char="Bob")
    'Bob greets Ann.'
    """
    names = {"{{user}}": user, "<user>": user, "{{char}}": char, "<bot>": char}
    return re.sub(r"\{\{(?:user|char)\}\}|<(?:user|bot)>", lambda found: names[found[0].lower()], text, flags=re.IGNORECASE)
