"""Chat templates as files: prompts/templates/NAME.jinja, or NAME.yaml in the form that other UIs had in 2023."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modules.errors import NoChatTemplate, NotFound, UserError
from modules.generation.template import check_template
from modules.library.entries import named, read_text
from modules.library.paths import path_inside, write_text
from modules.settings.yaml_text import parse_yaml

BY_NAME = "by-name.yaml"
_SUFFIXES = (".jinja", ".yaml", ".yml")
_STOP = re.compile(r"\{#-?\s*stop:\s*(\[.*?\])\s*-?#\}", re.DOTALL)


@dataclass(frozen=True)
class ChatTemplate:
    """A template that was chosen; origin: "model", the name of a file in prompts/templates/, or "request" for Jinja source."""

    source: str
    origin: str


class TemplateLibrary:
    """The templates in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Every template, by name."""
        files = named(self.folder, *_SUFFIXES)
        return sorted({file.stem for file in files if file.name != BY_NAME}, key=str.lower)

    def read(self, name: str) -> str:
        """The Jinja source of a template. Raises UserError, NotFound."""
        for suffix in _SUFFIXES:
            path = path_inside(self.folder, name, suffix, "template's name")
            if os.path.lexists(path) and path.name != BY_NAME:
                text = read_text(path)
                return text.removesuffix("\n") if suffix == ".jinja" else from_turn_template(_mapping(text, path.name))
        raise NotFound(f"There is no chat template called {name}. There are: {', '.join(self.names())}.", param="template")

    def save(self, name: str, source: str) -> None:
        """Raises UserError where `source` is not valid Jinja."""
        check_template(source)
        write_text(path_inside(self.folder, name, ".jinja", "template's name"), source.removesuffix("\n") + "\n")

    def delete(self, name: str) -> None:
        """Raises NotFound."""
        if name not in self.names():
            raise NotFound(f"There is no chat template called {name}.", param="template")
        for suffix in _SUFFIXES:
            path_inside(self.folder, name, suffix).unlink(missing_ok=True)

    def resolve_chat_template(self, model_name: str, own: str | None, wanted: str = "") -> ChatTemplate:
        """The template `wanted`, by name or as Jinja source; without one the model's `own`, else the one that fits its name.

        Raises NotFound for a name that no template has, NoChatTemplate where nothing fits.
        """
        if re.search(r"\{[{%]", wanted):
            return ChatTemplate(wanted, "request")
        if wanted:
            return ChatTemplate(self.read(wanted), wanted)
        if own:
            return ChatTemplate(own, "model")
        if fitting := self.fitting(model_name):
            return fitting
        raise NoChatTemplate

    def fitting(self, model_name: str) -> ChatTemplate | None:
        """The template that fits a model's name; None where none is known."""
        plain = re.sub(r"[_ ]", "-", model_name)
        path = self.folder / BY_NAME
        for pattern, template in _rules(path) if path.exists() else ():
            if pattern.search(plain):
                return ChatTemplate(self.read(template), template)
        return None


def _rules(path: Path) -> Iterator[tuple[re.Pattern[str], str]]:
    """(pattern of names, template) as they stand in a file. Raises UserError."""
    try:
        rules: Any = parse_yaml(read_text(path)) or []
        for rule in rules:
            yield re.compile(rule["name"], re.IGNORECASE), rule["template"]
    except (yaml.YAMLError, TypeError, LookupError, re.error) as error:
        raise UserError(f"{path.name} must be a list of `name` (a pattern) and `template`: {error}.") from None


def stop_texts(source: str) -> tuple[str, ...]:
    """Texts that end a reply in this form, for models that were never taught an end-of-turn token.

    A template says them in a comment: {# stop: ["### Human:"] #}.
    """
    found = _STOP.search(source)
    try:
        texts = json.loads(found[1]) if found else []
    except ValueError:
        return ()
    return tuple(text for text in texts if isinstance(text, str) and text)


def _mapping(text: str, name: str) -> dict[str, Any]:
    try:
        values = parse_yaml(text)
    except yaml.YAMLError:
        raise UserError(f"{name} is not valid YAML.") from None
    if not isinstance(values, dict) or "turn_template" not in values:
        raise UserError(f"{name} has no turn_template.")
    return values


def from_turn_template(values: dict[str, Any]) -> str:
    """Jinja for {user, bot, turn_template, context}, with <|user-message|> and <|bot-message|> in the turn template.

    A system message follows the context, or stands where the context says <|system-message|>; a later one counts as the user's.
    The begin-of-text token comes first, where the model has one of its own and the text does not begin with it.
    """
    user, bot, context = (str(values.get(key) or "") for key in ("user", "bot", "context"))
    turn = str(values["turn_template"]).replace("<|user|>", user).replace("<|bot|>", bot)
    before, found, rest = turn.partition("<|user-message|>")
    between, found_too, after = rest.partition("<|bot-message|>")
    if not (found and found_too):
        raise UserError("A turn_template needs <|user-message|> and, after it, <|bot-message|>.")
    default = json.dumps(str(values.get("system_message") or ""), ensure_ascii=False)
    if "<|system-message|>" not in context:
        context += "<|system-message|>"
        ending = r" + '\n\n'"
    else:
        ending = ""
    head, _, tail = context.partition("<|system-message|>")
    return (
        "{%- set has_system = messages and messages[0]['role'] == 'system' -%}\n"
        f"{{%- set system = messages[0]['content']{ending} if has_system else {default} -%}}\n"
        f"{{%- set text = {_literal(head)} + system + {_literal(tail)} -%}}\n"
        f"{{%- if bos_token and bos_token != eos_token and not (text + {_literal(before)}).startswith(bos_token) -%}}\n"
        "    {{- bos_token -}}\n"
        "{%- endif -%}\n"
        "{{- text -}}\n"
        "{%- set count = namespace(round=0) -%}\n"
        "{%- for message in messages -%}\n"
        "    {%- if message['role'] == 'user' or (message['role'] == 'system' and not loop.first) -%}\n"
        f"        {{{{- {_in_turn(before)} + message['content'] -}}}}\n"
        "    {%- elif message['role'] == 'assistant' -%}\n"
        f"        {{{{- {_in_turn(between)} + message['content'] + {_in_turn(after)} -}}}}\n"
        "        {%- set count.round = count.round + 1 -%}\n"
        "    {%- endif -%}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}\n"
        f"    {{{{- {_in_turn(between.rstrip(' '))} -}}}}\n"
        "{%- endif -%}"
    )


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _in_turn(text: str) -> str:
    """A part of a turn as a Jinja expression, with the number of the round where it is asked for."""
    return " + (count.round | string) + ".join(_literal(part) for part in text.split("<|round|>"))
