"""Character cards as values: V1, V2 and V3, Pygmalion's, and the keys of 2023, to a Character and back.

The specifications: malfoyslastname/character-card-spec-v2 and kwaroran/character-card-spec-v3. What is odd counts as absent,
and what did not come in or has no effect here is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from modules.errors import UserError
from modules.library.card_values import clean, kept, number, text_of, words
from modules.library.character import Character
from modules.library.decorators import read_decorators
from modules.library.lore import LoreBook
from modules.library.lore_book import as_book, broken_patterns, read_book
from modules.library.lore_book import without_effect as entries_without_effect

Json = Mapping[str, Any]
LONGEST_TEXT = 200_000
LONGEST_NAME = 500
_OURS = "textloom"
"""Below `extensions`: what only characters of this program have."""
_KEPT = frozenset(
    {
        "creator_notes", "creator_notes_multilingual", "tags", "creator", "character_version", "extensions", "source", "assets",
        "group_only_greetings", "creation_date", "modification_date",
    }
)  # fmt: skip
_MACRO = re.compile(r"\{\{\s*([A-Za-z_]+)")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_REPLACED = {"user", "char", "comment", "hidden_key", "original"}


@dataclass(frozen=True)
class LeftOut:
    """Something of a file that did not come in, or has no effect here. kind: the key of the sentence that says so; what, count: in it."""

    kind: str
    what: str = ""
    count: int = 0


def line_of(name: str) -> str:
    """A name in one line, without control characters."""
    return " ".join(_CONTROLS.sub("", name).split())


def from_card(values: Any, file: str) -> tuple[Character, list[LeftOut]]:
    """The character that `values` describe, and what is left out of it. Raises UserError with a sentence that names `file`."""
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no character: it needs a name, and a context or a greeting.")
    values = clean(values)
    data = values.get("data")
    nested = isinstance(data, dict)
    reader = _Reader(data if nested else values, file)
    name = reader.name(values.get("name") if nested else None)
    book, broken = read_book(listed := reader.take("character_book"))
    if listed is not None and book is None:
        reader.odd.append("character_book")
    extensions = reader.values.get("extensions")
    ours = extensions.get(_OURS) if isinstance(extensions, dict) else None
    own = _Reader(ours if isinstance(ours, dict) else {}, file)
    character = Character(
        name=name,
        context=reader.text("context", "char_persona", "description"),
        greeting=reader.text("greeting", "char_greeting", "first_mes"),
        example_dialogue=reader.text("example_dialogue", "mes_example"),
        user=" ".join((reader.text("your_name", "user") or own.text("your_name")).split()),
        turn_template=reader.text("turn_template") or own.text("turn_template"),
        more_greetings=reader.texts("more_greetings", "alternate_greetings"),
        personality=reader.text("personality"),
        scenario=reader.text("world_scenario", "scenario"),
        system_prompt=reader.text("system_prompt"),
        post_history=reader.text("post_history_instructions"),
        nickname=line_of(reader.text("nickname"))[:LONGEST_NAME],
        book=book,
        others=reader.others(everything=nested),
    )
    told = [LeftOut("entry", ", ".join(map(str, broken)), len(broken))] if broken else []
    if reader.odd:
        told.append(LeftOut("odd", ", ".join(reader.odd), len(reader.odd)))
    version = number(values.get("spec_version")) or _as_number(values.get("spec_version"))
    if version is not None and version > 3:
        told.append(LeftOut("newer", str(values["spec_version"])))
    return character, [*told, *_without_effect(character)]


def as_card(character: Character, version: Literal[2, 3] = 3) -> dict[str, Any]:
    """A character as a card, which `from_card` reads as the same character."""
    others = dict(character.others)
    ours = kept({"your_name": character.user, "turn_template": character.turn_template})
    extensions = {**others.pop("extensions", {}), **({_OURS: ours} if ours else {})}
    data: dict[str, Any] = {
        "name": character.name,
        "description": character.context,
        "personality": character.personality,
        "scenario": character.scenario,
        "first_mes": character.greeting,
        "mes_example": character.example_dialogue,
        "creator_notes": "",
        "system_prompt": character.system_prompt,
        "post_history_instructions": character.post_history,
        "alternate_greetings": list(character.more_greetings),
        "tags": [],
        "creator": "",
        "character_version": "",
        "extensions": extensions,
        **({"group_only_greetings": []} if version == 3 else {}),
        **others,
    }
    if character.nickname:
        data["nickname"] = character.nickname
    if character.book is not None:
        data["character_book"] = as_book(character.book)
    return {"spec": f"chara_card_v{version}", "spec_version": f"{version}.0", "data": data}


class _Reader:
    """Fields of a card under their several names. odd: the names of those that are not what they must be."""

    def __init__(self, values: Json, file: str) -> None:
        self.values, self._file = values, file
        self.odd: list[str] = []
        self._seen: set[str] = set()

    def name(self, other: Any) -> str:
        """The name, or `other` where the card has none. Raises UserError without either."""
        names = (self.take("name", "bot", "char_name"), other)
        found = next((text for value in names if (text := text_of(value)) and text.strip()), None)
        if found is None and any(value is not None for value in names if text_of(value) is None):
            raise UserError(f"{self._file}: name must be a text.", param="name")
        line = line_of(found or "")
        if not line and {"entries", "data"} & self.values.keys():
            raise UserError(
                f"{self._file} holds no character: it has no name. A lore book comes in with the card that holds it."
            )
        if not line:
            raise UserError(f"{self._file} holds no character: it has no name.", param="name")
        if len(line) > LONGEST_NAME:
            raise UserError(f"{self._file}: name is too long, {LONGEST_NAME} letters are the most.", param="name")
        return line

    def take(self, *names: str) -> Any:
        """The first of the fields that has a value."""
        self._seen.update(names)
        return next((value for name in names if (value := self.values.get(name)) not in (None, "", [], {})), None)

    def text(self, *names: str) -> str:
        """The first of the fields that says something. Raises UserError where it is too long."""
        self._seen.update(names)
        for name in names:
            value = self.values.get(name)
            text = text_of(value)
            if text is None and value not in (None, [], {}):
                self.odd.append(name)
            if text and text.strip():
                if len(text) > LONGEST_TEXT:
                    raise UserError(f"{self._file}: {name} is too long, {LONGEST_TEXT} letters are the most.", param=name)
                return text.strip()
        return ""

    def texts(self, *names: str) -> tuple[str, ...]:
        value = self.take(*names)
        items = value if isinstance(value, list) else []
        found = [text_of(item) for item in items]
        if (value is not None and not isinstance(value, list)) or None in found:
            self.odd.append(next(name for name in names if name in self.values))
        return tuple(text.strip() for text in found if text and text.strip())

    def others(self, *, everything: bool) -> dict[str, Any]:
        """What has no effect here; of files that are no cards only what cards may have."""
        rest = {key: value for key, value in self.values.items() if key not in self._seen and (everything or key in _KEPT)}
        extensions = rest.get("extensions")
        if isinstance(extensions, dict):
            rest["extensions"] = {key: value for key, value in extensions.items() if key != _OURS}
        elif extensions is not None:
            del rest["extensions"]
            self.odd.append("extensions")
        return kept(rest)


def _as_number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, str) and len(value) < 20 else None
    except ValueError:
        return None


# --- what has no effect here


def _without_effect(character: Character) -> Iterator[LeftOut]:
    book = character.book or LoreBook(())
    others = character.others
    assets = others.get("assets")
    pictures = [asset for asset in assets if asset_uri(asset) != "ccdefault:"] if isinstance(assets, list) else []
    if pictures:
        yield LeftOut("assets", count=len(pictures))
    if greetings := others.get("group_only_greetings"):
        yield LeftOut("group", count=len(words(greetings)))
    if extensions := [name for name in others.get("extensions", {}) if name not in ("depth_prompt", *_HARMLESS)]:
        yield LeftOut("extensions", ", ".join(extensions[:8]), len(extensions))
    if off := sum(not entry.enabled for entry in book.entries):
        yield LeftOut("off", count=off)
    marks = {mark for entry in book.entries for mark in read_decorators(entry.content).without_effect}
    if marks:
        yield LeftOut("decorators", ", ".join(f"@@{mark}" for mark in sorted(marks)[:8]), len(marks))
    if options := entries_without_effect(book):
        yield LeftOut("options", ", ".join(options), len(options))
    if patterns := broken_patterns(book):
        yield LeftOut("patterns", ", ".join(pattern[:40] for pattern in patterns[:4]), len(patterns))
    if macros := _macros(character):
        yield LeftOut("macros", ", ".join(f"{{{{{name}}}}}" for name in macros[:8]), len(macros))


_HARMLESS = ("talkativeness", "fav", "chub")
"""Extensions that do nothing to a prompt anywhere."""


def asset_uri(asset: Any) -> str:
    uri = asset.get("uri") if isinstance(asset, dict) else None
    return uri if isinstance(uri, str) else ""


def _macros(character: Character) -> list[str]:
    """The names of those {{macros}} in its texts that stay as they are."""
    texts = [
        character.context, character.greeting, character.example_dialogue, character.personality, character.scenario,
        character.system_prompt, character.post_history, *character.more_greetings,
        *(entry.content for entry in (character.book.entries if character.book else ())),
    ]  # fmt: skip
    found = {name.lower() for text in texts for name in _MACRO.findall(text)}
    return sorted(found - _REPLACED)


def without_data(character: Character) -> tuple[Character, list[LeftOut]]:
    """A character without files that its card holds as data: URIs; they would make up most of what is kept."""
    assets = character.others.get("assets")
    if not isinstance(assets, list):
        return character, []
    left = [asset for asset in assets if not asset_uri(asset).startswith("data:")]
    if len(left) == len(assets):
        return character, []
    return replace(character, others=kept({**character.others, "assets": left})), [
        LeftOut("data", count=len(assets) - len(left))
    ]
