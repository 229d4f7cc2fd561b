"""The three ways to put a conversation to a model: by its template, as the lines of a play, or as a play inside the template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modules.errors import UserError
from modules.generation.control import as_text
from modules.generation.template import picture_mark
from modules.generation.types import Message as Turn
from modules.generation.types import Messages
from modules.library.character import Character, with_names
from modules.library.templates import from_turn_template, stop_texts

Mode = Literal["instruct", "chat", "chat-instruct"]
COMMAND = "Go on with the dialogue below. Write the next reply of <|character|>, and nothing else.\n\n<|prompt|>"
"""What chat-instruct asks for where nobody says anything else."""
NOBODY = Character("Assistant", "A conversation between {{user}} and {{char}}, who answers kindly and to the point.")
"""Who speaks where no character is chosen."""
USER = "You"


@dataclass(frozen=True)
class Staged:
    """What a request takes of it. template: Jinja source, None for the model's own; stop: texts that end the reply too."""

    messages: Messages
    template: str | None
    stop: tuple[str, ...] = ()


def staged(
    turns: Sequence[Turn],
    mode: Mode = "instruct",
    character: Character | None = None,
    *,
    user: str = "",
    system: str = "",
    template: str | None = None,
    own_template: str | None = None,
    command: str = "",
    speaker: Literal["character", "user"] = "character",
) -> Staged:
    """`turns` (without what was told before them) as the model is asked to go on with them in `mode`.

    user: the name of the person; system: told besides the character's context; template: used in place of own_template,
    which is the model's. command: what chat-instruct asks for, with <|character|> and <|prompt|>. speaker: who speaks next;
    the person's next line can be asked for in the two modes of a play. Nothing here is lost when old turns are dropped: what
    is told before is the first message, and only whole turns go. Raises UserError where the mode needs a template.
    """
    person = user or (character.user if character else "") or USER
    source = template or own_template
    if mode == "instruct":
        told = _joined(system, *_told(character, person)) if character else with_names(system, user=person, char="Assistant")
        messages = (Turn("system", told), *turns) if told else tuple(turns)
        return Staged(messages, template, stop_texts(template) if template else ())
    mark = ""
    if mode == "chat" and any(turn.images for turn in turns):
        mark = picture_mark(source) if source else ""
        if not mark:
            raise UserError(
                "How this model is shown a picture between the lines of a play is not known: take the mode instruct.",
                param="mode",
            )
    player = character or NOBODY
    told = _joined(*_told(player, person), player.filled(system, person))
    messages = (Turn("system", told), *turns) if told else tuple(turns)
    play = _pictures_as(mark) + _play(player, person, speaker)
    stops = (f"\n{person}:", f"\n{player.name}:")
    if mode == "chat":
        return Staged(messages, play, stops)
    if source is None or "messages" not in source:
        raise UserError(
            "The mode chat-instruct needs the model's chat template, which is not known here. Choose one, or another mode.",
            param="template",
        )
    speaks = player.name if speaker == "character" else person
    asked = (command if "<|prompt|>" in command else COMMAND).replace("<|character|>", speaks)
    return Staged(messages, _inside(play, player.filled(asked, person), source, speaks), (*stops, *stop_texts(source)))


def _told(character: Character, user: str) -> tuple[str, str]:
    """The context and the examples of a character, the names put in."""
    return character.filled(character.context, user), character.filled(character.example_dialogue, user)


def _joined(*texts: str) -> str:
    return "\n\n".join(text.strip() for text in texts if text.strip())


# --- the play


def _play(character: Character, user: str, speaker: str) -> str:
    """Jinja for lines of the form "Name: text" after what is told; the line that is asked for ends with its colon."""
    if character.turn_template:
        return from_turn_template(
            {
                "user": as_text(user),
                "bot": as_text(character.name),
                "turn_template": character.turn_template,
                "context": "",
            }
        )
    return (
        _LINES.replace("USER", _literal(as_text(user)))
        .replace("CHARACTER", _literal(as_text(character.name)))
        .replace("NEXT", _literal(as_text(character.name if speaker == "character" else user) + ":"))
    )


_LINES = (
    "{%- if bos_token and bos_token != eos_token -%}{{- bos_token -}}{%- endif -%}\n"
    "{%- for message in messages -%}\n"
    "    {%- if message.role == 'user' -%}{{- USER + ': ' + (message.content | trim) -}}\n"
    "    {%- elif message.role == 'assistant' -%}{{- CHARACTER + ': ' + (message.content | trim) -}}\n"
    "    {%- else -%}{{- (message.content | trim) + '\\n' -}}{%- endif -%}\n"
    "    {{- '\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- NEXT -}}{%- endif -%}"
)


def _pictures_as(mark: str) -> str:
    """Jinja after which every turn is plain text, with `mark` where a picture is."""
    return f"{{%- set mark, plain = {_literal(mark)}, namespace(turns=[]) -%}}\n" + _PLAIN


_PLAIN = (
    "{%- for message in messages -%}\n"
    "    {%- set text -%}\n"
    "        {%- if message.content is string -%}{{- message.content -}}\n"
    "        {%- else -%}\n"
    "            {%- for part in message.content -%}{{- mark if part.type == 'image' else part.text -}}{%- endfor -%}\n"
    "        {%- endif -%}\n"
    "    {%- endset -%}\n"
    "    {%- set plain.turns = plain.turns + [dict(message, content=text | string)] -%}\n"
    "{%- endfor -%}\n"
    "{%- set messages = plain.turns -%}\n"
)


def _inside(play: str, command: str, source: str, name: str) -> str:
    """Jinja that puts the play, without the reply that is asked for, into one turn of the user in `source`."""
    before, _, after = command.partition("<|prompt|>")
    return (
        "{%- set goes_on = not add_generation_prompt and messages and messages[-1].role == 'assistant' -%}\n"
        "{%- set begun = messages[-1].content if goes_on else '' -%}\n"
        "{%- set whole, seen = messages, namespace(images=[]) -%}\n"
        "{%- for message in messages if message.content is not string -%}\n"
        "    {%- for part in message.content if part.type == 'image' -%}\n"
        "        {%- set seen.images = seen.images + [part] -%}\n"
        "    {%- endfor -%}\n"
        "{%- endfor -%}\n"
        "{%- set messages = messages[:-1] if goes_on else messages -%}\n"
        "{%- set add_generation_prompt = false -%}\n"
        "{%- set marks = [bos_token, eos_token] -%}\n"
        "{%- set bos_token = '' -%}\n"
        f"{{%- set dialogue -%}}\n{play}\n{{%- endset -%}}\n"
        "{%- set bos_token = marks[0] -%}\n"
        f"{{%- set asked = {_literal(as_text(before))} + (dialogue | trim) + {_literal(as_text(after))} -%}}\n"
        "{%- if seen.images -%}{%- set asked = seen.images + [{'type': 'text', 'text': asked}] -%}{%- endif -%}\n"
        "{%- set messages = [{'role': 'user', 'content': asked}] -%}\n"
        "{%- set add_generation_prompt = true -%}\n"
        f"{source}\n"
        f"{{{{- {_literal(as_text(name) + ':')} -}}}}{{%- if begun -%}}{{{{- ' ' + begun -}}}}{{%- endif -%}}"
    )


def _literal(text: str) -> str:
    """A text inside Jinja: nothing in it is read as Jinja. The braces are escaped too, for they would begin a tag."""
    return json.dumps(text, ensure_ascii=False).replace("{", "\\u007b").replace("}", "\\u007d").replace("%", "\\u0025")
