"""What an import has to say of a chat: why it stays outside, or what of it could not come along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modules.errors import UserError

WORDS = {
    # why a file stays outside
    "unknown": "The file is in no form that is known: chats come as JSON (Textloom, OpenAI, ShareGPT, ChatGPT, Claude, SillyTavern, "
    "Open WebUI, LM Studio, or internal and visible) or as Markdown with a heading for each turn.",
    "encoding": "The file is no text in UTF-8 or UTF-16: chats come as JSON or Markdown.",
    "void": "The file is empty.",
    "nothing": "There is no chat in this file.",
    "archive": "There is no file of chats in this archive: chats come as JSON or Markdown.",
    "large": "The file is too large: {most} MB at most.",
    "many": "The file has {chats} chats with {messages} messages; {most_chats} with {most_messages} are the most at a time.",
    # why a chat stays outside
    "form": "It is in no form of a chat that is known.",
    "json": "Its JSON is broken, {at} characters after its beginning.",
    "cut": "The file ends in the middle of it.",
    "rest": "From here on the file cannot be read.",
    "deep": "It is nested too deeply.",
    "half": "It has half of a surrogate pair (\\ud800 to \\udfff), which is no character.",
    "bytes": "It has bytes that are not UTF-8.",
    "empty": "There is no message in it.",
    "newer": "A newer version of Textloom wrote it: update, then import it again.",
    "missing": "There is no {where} in it.",
    "text": "At {where} there should be a text.",
    "list": "At {where} there should be a list.",
    "object": "At {where} there should be an object with keys.",
    "number": "At {where} there should be a number.",
    "wrong": "At {where} there is something else than belongs there.",
    "role": "Nobody knows who speaks as “{name}”.",
    "order": "Message {n} follows one that is not before it.",
    "shown": "It shows message {n}, which is not there.",
    "loop": "Its messages follow each other in a circle.",
    "twice": "Two of its messages have the same number, “{id}”.",
    "headings": "This Markdown has no turns: each needs a heading such as `## User` or `## Assistant`.",
    "long": "It has {n} messages; {most} are the most.",
    "damaged": "This file is damaged, or too large.",
    # what of a chat could not come along
    "picture": "Message {n}: a picture cannot be read and is left out.",
    "pictures": "Pictures that are not in the file: {n}. Their names stand in the messages.",
    "files": "Attached files that are not in the file: {n}. Their names stand in the messages.",
    "parts": "Parts of messages that are neither text nor picture: {n}. Their kinds stand in the messages.",
    "hidden": "Messages that the service hides, left out: {n}.",
    "unhidden": "Messages that were hidden from the model and are not hidden here: {n}.",
    "line": "Line {n} cannot be read and is left out.",
    "tools": "The descriptions of its tools are left out.",
    "orphans": "Messages that follow one that is not there: {n}. Each begins a branch of its own.",
}
"""Code → the sentence in English, with places for values."""


@dataclass(frozen=True)
class Remark:
    """One sentence of WORDS with its values."""

    code: str
    values: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return WORDS[self.code].format_map(self.values)


class Unreadable(UserError):
    """A chat, or a file of them, that cannot be read; `remark` says why."""

    def __init__(self, reason: str, /, **values: str | int) -> None:
        self.remark = Remark(reason, values)
        super().__init__(self.remark.text)
