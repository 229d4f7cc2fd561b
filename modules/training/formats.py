"""Formats: how a row becomes a conversation. Each is a file of training/formats, YAML, or JSON in the form of July 2023."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from modules.errors import NotFound, UserError
from modules.generation.types import Message, Messages
from modules.library.entries import named, read_text
from modules.library.paths import safe_name
from modules.settings.declare import Settings, user_error
from modules.settings.yaml_text import parse_yaml
from modules.training.row import Row, cleaned

log = logging.getLogger(__name__)
_SUFFIXES = (".yaml", ".json")


class RowError(Exception):
    """This row cannot be used. kind: broken, empty or no answer."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True)
class Conversation:
    """A row as turns. variables go into the chat template beside them (tools)."""

    messages: Messages
    variables: Mapping[str, Any]


@dataclass(frozen=True)
class MarkedText:
    """A row whose words are fixed; answers: (start, end) of what counts as an answer, in characters."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Preference:
    """A row with two answers to the same conversation: the one that people preferred, and the other."""

    chosen: Conversation
    rejected: Conversation


Example = Conversation | MarkedText | Preference


class _Format(Settings):
    about: str = ""
    """One sentence for people."""
    template: str = ""
    """The chat template with the format's own words: one of prompts/templates; empty where it has none."""

    def needed(self) -> tuple[str, ...]:
        """Columns that every row must have."""
        raise NotImplementedError

    def read_row(self, row: Row) -> Example:
        """Raises RowError."""
        raise NotImplementedError


class PairFormat(_Format):
    """A question column and an answer column, with optional ones for more input, a system text and earlier turns."""

    kind: Literal["pairs"]
    user: str
    input: str = ""
    assistant: str
    system: str = ""
    history: str = ""

    def needed(self) -> tuple[str, ...]:
        return (self.user, self.assistant)

    def read_row(self, row: Row) -> Conversation:
        question, more, answer = (_text(row, column) for column in (self.user, self.input, self.assistant))
        if not question.strip() and not more.strip():
            raise RowError("empty", f"{self.user} is empty")
        if not answer.strip():
            raise RowError("no answer", f"{self.assistant} is empty")
        messages = [Message("system", system)] if (system := _text(row, self.system)).strip() else []
        messages += self._earlier(row)
        asked = "\n\n".join(part for part in (question, more) if part.strip())
        messages += [Message("user", asked), Message("assistant", answer)]
        return Conversation(tuple(messages), {})

    def _earlier(self, row: Row) -> list[Message]:
        turns = row.get(self.history) or []
        if isinstance(turns, str) and is_missing(turns):
            return []
        if not isinstance(turns, list):
            raise RowError("broken", f"{self.history} is not a list of questions and answers")
        messages: list[Message] = []
        for turn in turns:
            if not isinstance(turn, list | tuple) or len(turn) != 2:
                raise RowError("broken", f"{self.history} must hold pairs of question and answer")
            question, answer = (_words(part, self.history) for part in turn)
            messages += [Message("user", question), _answer(answer, {})]
        return messages


class MessageFormat(_Format):
    """A column with the list of turns."""

    kind: Literal["messages"]
    column: str
    role: str = "role"
    content: str = "content"
    roles: dict[str, str] = Field(default_factory=dict)
    system: str = ""
    tools: str = ""

    def needed(self) -> tuple[str, ...]:
        return (self.column,)

    def read_row(self, row: Row) -> Conversation:
        turns = row.get(self.column)
        if isinstance(turns, str):
            turns = None if is_missing(turns) else _parsed(turns, self.column)
        if not turns:
            raise RowError("empty", f"{self.column} is empty")
        if not isinstance(turns, list):
            raise RowError("broken", f"{self.column} is not a list of turns")
        messages = [_turn(turn, number, self.role, self.content, self.roles) for number, turn in enumerate(turns, 1)]
        if (system := _text(row, self.system)).strip() and messages[0].role != "system":
            messages.insert(0, Message("system", system))
        if not any(message.role == "assistant" and _says_something(message) for message in messages):
            raise RowError("no answer", "no turn is an answer")
        tools = row.get(self.tools) if self.tools else None
        if isinstance(tools, str):
            tools = None if is_missing(tools) else _parsed(tools, self.tools)
        return Conversation(tuple(messages), {"tools": tools} if tools else {})


class PreferenceFormat(_Format):
    """Two answers, in columns of their own: texts behind a prompt, or lists of turns that may hold the prompt themselves."""

    kind: Literal["preferences"]
    prompt: str
    chosen: str
    rejected: str
    system: str = ""

    def needed(self) -> tuple[str, ...]:
        return (self.chosen, self.rejected)

    def read_row(self, row: Row) -> Preference:
        before = self._turns(row, self.prompt, "user") if row.get(self.prompt) else []
        if (system := _text(row, self.system)).strip():
            before.insert(0, Message("system", system))
        chosen, rejected = ([*before, *self._turns(row, column, "assistant")] for column in (self.chosen, self.rejected))
        same = next(
            (at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
        )
        if same == len(chosen) or same == len(rejected):
            raise RowError("broken", f"{self.chosen} and {self.rejected} are the same, or one is the beginning of the other")
        if same == 0:
            raise RowError("empty", f"there is no prompt before {self.chosen}")
        # What both share is shown and not compared.
        shared = [Message(one.role, one.content, extra={**one.extra, "weight": 0}) for one in chosen[:same]]
        one, other = (
            self._answered(shared, turns[same:], column) for turns, column in ((chosen, self.chosen), (rejected, self.rejected))
        )
        return Preference(one, other)

    def _answered(self, shared: list[Message], answer: list[Message], column: str) -> Conversation:
        if answer[-1].role != "assistant" or not answer[-1].content.strip():
            raise RowError("no answer", f"{column} does not end with an answer")
        return Conversation((*shared, *answer), {})

    def _turns(self, row: Row, column: str, role: Literal["user", "assistant"]) -> list[Message]:
        value = row.get(column)
        if not isinstance(value, list):
            if not (text := _text(row, column)).strip():
                raise RowError("empty" if role == "user" else "no answer", f"{column} is empty")
            return [Message(role, text)]
        if not value:
            raise RowError("empty" if role == "user" else "no answer", f"{column} is empty")
        return [_turn(turn, number, "role", "content", {}) for number, turn in enumerate(value, 1)]


class MarkedFormat(_Format):
    """One column of text in which markers begin the turns."""

    kind: Literal["marked"]
    column: str
    markers: dict[str, Literal["system", "user", "assistant"]]

    def needed(self) -> tuple[str, ...]:
        return (self.column,)

    def read_row(self, row: Row) -> Conversation:
        text = _text(row, self.column)
        if not text.strip():
            raise RowError("empty", f"{self.column} is empty")
        pieces = re.split("|".join(f"({re.escape(marker)})" for marker in self.markers), text)
        pieces = [piece for piece in pieces if piece is not None]
        messages = [Message("system", pieces[0].strip())] if pieces[0].strip() else []
        for marker, content in zip(pieces[1::2], pieces[2::2], strict=True):
            role, content = self.markers[marker], "" if is_missing(content) else content.strip()
            messages.append(_answer(content, {}) if role == "assistant" else Message(role, content))
        if not any(message.role == "assistant" for message in messages):
            raise RowError("no answer", f"there is none of the markers that begin an answer: {', '.join(self.markers)}")
        if not any(message.role == "assistant" and message.content for message in messages):
            raise RowError("no answer", "the answer is empty")
        return Conversation(tuple(messages), {})


class TextFormat(_Format):
    """Plain text: everything is learnt, in pieces up to the cutoff."""

    kind: Literal["text"]
    column: str = "text"

    def needed(self) -> tuple[str, ...]:
        return (self.column,)

    def read_row(self, row: Row) -> MarkedText:
        text = _text(row, self.column)
        if not text.strip():
            raise RowError("empty", f"{self.column} is empty")
        return MarkedText(text, ((0, len(text)),))


class KeySetFormat(_Format):
    """July 2023: for each set of columns that are filled, the whole text with %column% in it. The last one is the answer."""

    kind: Literal["keys"] = "keys"
    texts: dict[str, str]

    def needed(self) -> tuple[str, ...]:
        sets = [set(keys.split(",")) for keys in self.texts]
        return tuple(sorted(set.intersection(*sets))) if sets else ()

    def read_row(self, row: Row) -> MarkedText:
        filled = {key for key, value in row.items() if isinstance(value, str) and not is_missing(value)}
        form = next((form for keys, form in self.texts.items() if set(keys.split(",")) == filled), None)
        if form is None:
            known = {key for keys in self.texts for key in keys.split(",")}
            kind = "empty" if not filled & known else "no answer" if filled < known else "broken"
            raise RowError(kind, f"the filled columns are {', '.join(sorted(filled)) or 'none'}, and no text is made for that")
        text, answer = "", (0, 0)
        pieces = re.split(r"%(\w+)%", form)
        for literal, key in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            text += literal
            if key in filled:
                answer = (len(text), len(text) + len(row[key]))
                text += row[key]
            elif key:
                text += f"%{key}%"
        return MarkedText(text, ((answer[0], len(text)),))


Format = PairFormat | MessageFormat | PreferenceFormat | MarkedFormat | TextFormat | KeySetFormat
_ADAPTER: TypeAdapter[Format] = TypeAdapter(Annotated[Format, Field(discriminator="kind")])
_SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "function"), "tool"),
}
"""Who speaks, by the names that data sets have for it, however they are capitalised."""
_NO_VALUE = frozenset(("", "nan", "NaN", "None", "null", "NULL", "<NA>", "NaT", "inf", "-inf", "Infinity", "-Infinity"))
"""What pandas and others write for a missing text when they make a word of it."""


def list_formats(folder: Path) -> list[str]:
    """Names of the formats: files without their suffix, in alphabetical order."""
    return sorted({path.stem for path in named(folder, *_SUFFIXES)})


def read_format(folder: Path, name: str) -> Format:
    """The format `name`. Raises NotFound, or UserError that says what is wrong in the file."""
    name = safe_name(name, "format")
    for suffix in _SUFFIXES:
        path = folder / (name.removesuffix(suffix) + suffix)
        if os.path.lexists(path):
            return _read_yaml(path) if suffix == ".yaml" else _read_key_set(path)
    raise NotFound(f"There is no format called {name}. There are: {', '.join(list_formats(folder))}.", param="format")


def guess_format(folder: Path, columns: Iterable[str], first: Row) -> str:
    """The first format whose columns are there. Raises UserError that lists the columns."""
    there = set(columns)
    for name in _guessing_order(folder):
        try:
            form = read_format(folder, name)
        except UserError as error:
            log.warning("%s", error.message)
            continue
        if isinstance(form, KeySetFormat) or not there.issuperset(form.needed()):
            continue
        if isinstance(form, MarkedFormat) and not any(marker in _text(first, form.column) for marker in form.markers):
            continue
        if isinstance(form, MessageFormat) and not _fits(form, first):
            continue
        return name
    raise UserError(
        f"No format fits the columns {', '.join(columns) or '(none)'}: choose one, or write one (docs/training.md).",
        param="format",
    )


def _guessing_order(folder: Path) -> list[str]:
    """By name; preferences first, as their rows may have the columns of others too, and plain text last, which fits nearly everything."""
    order = {"preferences": 0, "text": 2}
    return sorted(list_formats(folder), key=lambda name: (order.get(name, 1), name))


def _fits(form: MessageFormat, row: Row) -> bool:
    turns = row.get(form.column)
    return not isinstance(turns, list) or not turns or (isinstance(turns[0], Mapping) and form.role in turns[0])


def _read_yaml(path: Path) -> Format:
    try:
        values = parse_yaml(read_text(path))
        return _ADAPTER.validate_python(values)
    except yaml.YAMLError as error:
        raise UserError(f"The format {path.name} is not valid YAML: {error}", param="format") from None
    except ValidationError as error:
        raise UserError(f"The format {path.name} is wrong: {user_error(error).message}", param="format") from None


def _read_key_set(path: Path) -> KeySetFormat:
    try:
        texts = json.loads(read_text(path))
        return KeySetFormat.read({"texts": texts, "about": "Whole texts by the columns that are filled."})
    except json.JSONDecodeError as error:
        raise UserError(f"The format {path.name} is not valid JSON: line {error.lineno}.", param="format") from None


def is_missing(text: str) -> bool:
    """Whether a text is empty, or just the word that programs write where a value is missing."""
    return text.strip() in _NO_VALUE


def _turn(turn: Any, number: int, role_key: str, content_key: str, roles: Mapping[str, str]) -> Message:
    """One entry of a list of turns. Raises RowError."""
    if not isinstance(turn, Mapping) or turn.get(role_key) is None:
        raise RowError("broken", f"turn {number} has no {role_key}")
    said = str(turn[role_key]).strip()
    role: Any = roles.get(said) or _SPEAKERS.get(said.lower())
    if role is None:
        known = ", ".join(dict.fromkeys([*roles, *_SPEAKERS]))
        raise RowError("broken", f"turn {number} is by {said[:60]!r}, which is none of {known}")
    content = turn.get(content_key)
    extra = {key: value for key, value in turn.items() if key not in (role_key, content_key) and value is not None}
    if said.lower() == "function_call" and isinstance(content, str):
        return Message("assistant", "", extra={**extra, "tool_calls": _calls(_parsed(content, f"turn {number}"), number)})
    if role == "assistant" and isinstance(extra.get("function_call"), Mapping):  # OpenAI's of 2023
        extra["tool_calls"] = _calls(extra.pop("function_call"), number)
    if content is None and role != "assistant":
        raise RowError("broken", f"turn {number} has no {content_key}")
    text = _words(content, f"turn {number}")
    return _answer(text, extra) if role == "assistant" else Message(role, text, extra=extra)


def _answer(text: str, extra: Mapping[str, Any]) -> Message:
    """An answer; one that is empty is shown to the template, and not learnt."""
    message = Message("assistant", text, extra=extra)
    return message if _says_something(message) else Message("assistant", text, extra={**extra, "weight": 0})


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Calls of tools as LLaMA-Factory writes them: an object with name and arguments, or a list of such. Raises RowError."""
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise RowError("broken", f"turn {number} is a function call without a name")
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments") or {}}} for call in calls
    ]


def _words(content: Any, where: str) -> str:
    """What a turn says: a text, or the texts in a list of parts; empty where that is missing. Raises RowError."""
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    if content is None:
        return ""
    if not isinstance(content, str | int | float):
        raise RowError("broken", f"{where} is not a text but {type(content).__name__}")
    return "" if is_missing(str(content)) else str(content)


def _text(row: Row, column: str) -> str:
    """The text in a column; empty where it is missing. Raises RowError."""
    value = row.get(column) if column else None
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return "" if is_missing(str(value)) else str(value)
    raise RowError("broken", f"{column} is not a text but {type(value).__name__}")


def _says_something(message: Message) -> bool:
    return bool(message.content.strip() or message.extra.get("tool_calls"))


def _parsed(text: str, where: str) -> Any:
    """Raises RowError."""
    try:
        return cleaned(json.loads(text))
    except (ValueError, RecursionError):
        raise RowError("broken", f"{where} is not valid JSON") from None
