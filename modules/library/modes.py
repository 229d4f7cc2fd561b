"""The three ways to put a conversation to a model: by its template, as the lines of a play, or as a play inside the template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from modules.errors import UserError
from modules.generation.control_tokens import as_text
from modules.generation.template import picture_mark
from modules.generation.types import LoadedModel, Messages
from modules.generation.types import Message as Turn
from modules.library.character import Character, with_names
from modules.library.lore import Entered, LoreBook, LoreEntry, entered
from modules.library.templates import from_turn_template, stop_texts

Mode = Literal["instruct", "chat", "chat-instruct"]
Speaker = Literal["character", "user"]
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


def about(text: str) -> int:
    """About how many tokens a text has, where no tokenizer is at hand: four bytes each."""
    return -(-len(text.encode(errors="replace")) // 4)


def counted_by(model: LoadedModel) -> Callable[[str], int]:
    """What counts the tokens of a text as `model` does, or about so where its engine does not show them."""

    def count(text: str) -> int:
        try:
            return len(model.tokenize(text))
        except UserError:
            return about(text)

    return count


def lore_of(
    character: Character | None,
    turns: Sequence[Turn],
    *,
    user: str = "",
    count: Callable[[str], int] = about,
    speaker: Speaker = "character",
) -> list[Entered]:
    """What of a character's lore `staged` tells the model."""
    player = character or NOBODY
    turns = turns[: len(turns) - _begun(turns, speaker)]
    said = [turn.content for turn in turns if turn.role != "system"]
    replies = sum(turn.role == "assistant" for turn in turns)
    person = user or player.user or USER
    books = (player.book or LoreBook(()), LoreBook(_depth_notes(player)))

    def fill(text: str) -> str:
        return player.filled(text, person)

    return [one for book in books for one in entered(book, said, replies, fill, count)]


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
    speaker: Speaker = "character",
    count: Callable[[str], int] = about,
) -> Staged:
    """`turns` (without what was told before them) as the model is asked to go on with them in `mode`.

    user: the name of the person; system: told besides the character's context; template: used in place of own_template,
    which is the model's. command: what chat-instruct asks for, with <|character|> and <|prompt|>. speaker: who speaks next;
    the person's next line can be asked for in the two modes of a play. count: the tokens of a text, for what a book of lore
    may take. Nothing here is lost when old turns are dropped: what is told before is the first message, and only whole turns
    go. Raises UserError where the mode needs a template.
    """
    person = user or (character.user if character else "") or USER
    source = template or own_template
    player = character or NOBODY
    lore = lore_of(character, turns, user=user, count=count, speaker=speaker)
    if mode == "instruct" and not character:
        told = with_names(system, user=person, char=NOBODY.name)
    else:
        told = _told(player, person, with_names(system, user=person, char=player.spoken), lore, first=mode == "instruct")
    turns = _with_notes(turns, player, person, lore, speaker)
    messages = (Turn("system", told), *turns) if told else tuple(turns)
    if mode == "instruct":
        return Staged(messages, template, stop_texts(template) if template else ())
    mark = ""
    if mode == "chat" and any(turn.images for turn in turns):
        mark = picture_mark(source) if source else ""
        if not mark:
            raise UserError(
                "How this model is shown a picture between the lines of a play is not known: take the mode instruct.",
                param="mode",
            )
    play = _pictures_as(mark) + _play(player, person, speaker)
    stops = (f"\n{person}:", f"\n{player.spoken}:")
    if mode == "chat":
        return Staged(messages, play, stops)
    if source is None or "messages" not in source:
        raise UserError(
            "The mode chat-instruct needs the model's chat template, which is not known here. Choose one, or another mode.",
            param="template",
        )
    speaks = player.spoken if speaker == "character" else person
    asked = (command if "<|prompt|>" in command else COMMAND).replace("<|character|>", speaks)
    return Staged(messages, _inside(play, player.filled(asked, person), source, speaks), (*stops, *stop_texts(source)))


# --- what is told besides the turns


def _told(character: Character, user: str, system: str, lore: Sequence[Entered], *, first: bool) -> str:
    """What stands before the conversation, the names put in. system: what the chat itself says, told first or last."""
    asked, used = _with_original(character.filled(character.system_prompt, user), system)
    own = "" if used else system
    about = [character.filled(character.context, user)]
    if personality := character.filled(character.personality, user):
        about.append(f"{character.spoken}'s personality: {personality}")
    if scenario := character.filled(character.scenario, user):
        about.append(f"Scenario: {scenario}")
    return _joined(
        own if first else "",
        asked,
        *(one.text for one in lore if one.place == "before"),
        "\n".join(part for part in about if part.strip()),
        *(one.text for one in lore if one.place == "after"),
        _without_marks(character.filled(character.example_dialogue, user)),
        "" if first else own,
    )


_ORIGINAL = re.compile(r"\{\{original\}\}", re.IGNORECASE)


def _with_original(text: str, original: str) -> tuple[str, bool]:
    """(`text` with `original` where it says {{original}}, whether it does)."""
    made, times = _ORIGINAL.subn(lambda _: original, text)
    return made.strip(), bool(times)


def _without_marks(dialogue: str) -> str:
    """Cards put <START> before each example."""
    return "\n".join(line for line in dialogue.split("\n") if line.strip().upper() != "<START>")


def _begun(turns: Sequence[Turn], speaker: Speaker) -> int:
    """How many turns at the end are the reply that goes on: the prompt before it stays as it was."""
    return int(speaker == "character" and bool(turns) and turns[-1].role == "assistant")


def _depth_notes(character: Character) -> tuple[LoreEntry, ...]:
    """What SillyTavern keeps with a character as a note that always stands so many messages from the end."""
    note = character.others.get("extensions", {}).get("depth_prompt")
    if not isinstance(note, dict) or not isinstance(text := note.get("prompt"), str) or not text.strip():
        return ()
    depth, role = note.get("depth"), note.get("role")
    depth = depth if isinstance(depth, int) and 0 <= depth <= 10**6 else 4
    return (LoreEntry(f"@@depth {depth}\n@@role {role}\n{text}", constant=True, others={"name": "depth_prompt"}),)


def _with_notes(
    turns: Sequence[Turn], character: Character, user: str, lore: Sequence[Entered], speaker: Speaker
) -> tuple[Turn, ...]:
    """`turns` with the lore that stands between them, and what the character's card says after them, before a reply that has begun.

    That is not said before what the person says next: it is about the character's replies.
    """
    end = len(turns) - _begun(turns, speaker)
    said, reply = list(turns[:end]), turns[end:]
    length = len(said)
    for one in sorted((one for one in lore if isinstance(one.place, int)), key=lambda one: -int(one.place)):
        added = len(said) - length
        said.insert(max(0, length - int(one.place)) + added, Turn(one.role, one.text))
    after, _ = _with_original(character.filled(character.post_history, user), "")
    if after and speaker == "character":
        said.append(Turn("system", after))
    return (*said, *reply)


def _joined(*texts: str) -> str:
    return "\n\n".join(text.strip() for text in texts if text.strip())


# --- the play


def _play(character: Character, user: str, speaker: Speaker) -> str:
    """Jinja for lines of the form "Name: text" after what is told; the line that is asked for ends with its colon."""
    if character.turn_template:
        return from_turn_template(
            {
                "user": as_text(user),
                "bot": as_text(character.spoken),
                "turn_template": character.turn_template,
                "context": "",
            }
        )
    return (
        _LINES.replace("USER", _literal(as_text(user)))
        .replace("CHARACTER", _literal(as_text(character.spoken)))
        .replace("NEXT", _literal(as_text(character.spoken if speaker == "character" else user) + ":"))
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
