"""The files that characters come in and are kept in: YAML and JSON of this kind of program, Pygmalion's JSON, character cards."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from modules.errors import UserError
from modules.library.card_images import MOST_POINTS, card_in, is_picture, may_hold_card, quiet, with_card
from modules.library.cards import LeftOut, as_card, from_card, without_data
from modules.library.character import Character
from modules.library.entries import read_bytes, text_of_bytes
from modules.settings.yaml_text import parse_yaml

SUFFIXES = (".yaml", ".yml", ".json", ".png", ".webp")
LARGEST_FILE = 20 * 1024 * 1024
"""With a picture."""
LARGEST_TEXT = 1024 * 1024
"""Bytes of a file without one."""
PORTRAIT_POINTS = 512
Form = Literal["yaml", "v2", "v3", "png"]
_KINDS = ("PNG", "JPEG", "WEBP", "GIF")
_BACKFILLED = "This card is a Character Card V3 that is read as V2: a program that reads V3 knows more of it."


@dataclass(frozen=True)
class Read:
    """A character that was read, and what of its file did not come in or has no effect here."""

    character: Character
    left_out: tuple[LeftOut, ...] = ()


def read_character(data: bytes, file: str) -> Character:
    """The character in a file of any of the known forms. Raises UserError with a sentence that names `file`."""
    return read_file(data, file).character


def read_file(data: bytes, file: str) -> Read:
    """The same with what is left out of it."""
    if len(data) > LARGEST_FILE:
        raise UserError(f"{file} is too large for a character: {LARGEST_FILE // 1024**2} MB with its picture at most.")
    left_out: list[LeftOut] = []
    if is_picture(data):
        values, broken = card_in(data)
        if values is None:
            damaged = ", and what stands there is damaged" if broken else ""
            raise UserError(
                f"{file} is a picture without a character in it: a card has one in its `ccv3` or `chara` text{damaged}."
            )
        if broken:
            left_out.append(LeftOut("ccv3"))
    else:
        values = _values(data, file)
    character, more = from_card(values, file)
    character, dropped = without_data(character)
    return Read(character, (*left_out, *more, *dropped))


def has_card(path: Path) -> bool:
    """Whether a picture holds a character; False for any other picture. Raises UserError where it cannot be read."""
    data = read_bytes(path) if path.stat().st_size <= LARGEST_FILE else b""
    return may_hold_card(data) and card_in(data)[0] is not None


def kept_form(character: Character) -> tuple[str, str]:
    """(suffix, text) of the file that a character is kept in: YAML, and a card in JSON where it has what only cards have."""
    form: Form = "v3" if character.book is not None or character.others else "yaml"
    return (".json" if form == "v3" else ".yaml"), written(character, form)


def written(character: Character, form: Literal["yaml", "v2", "v3"] = "yaml") -> str:
    """A character as YAML, only what it has, or as a card in JSON."""
    if form != "yaml":
        return json.dumps(as_card(character, 2 if form == "v2" else 3), ensure_ascii=False, indent=1) + "\n"
    values: dict[str, Any] = {
        "name": character.name,
        "nickname": character.nickname,
        "your_name": character.user,
        "greeting": character.greeting,
        "context": character.context,
        "personality": character.personality,
        "scenario": character.scenario,
        "example_dialogue": character.example_dialogue,
        "turn_template": character.turn_template,
        "system_prompt": character.system_prompt,
        "post_history_instructions": character.post_history,
        "more_greetings": list(character.more_greetings),
    }
    return yaml.safe_dump(
        {key: value for key, value in values.items() if value}, sort_keys=False, allow_unicode=True, width=110
    )


def card_picture(character: Character, picture: bytes | None) -> bytes:
    """A PNG that holds the character as a card of both kinds; a plain one where it has no picture."""
    older = as_card(character, 2)
    older["data"]["creator_notes"] = "\n\n".join(filter(None, (_BACKFILLED, older["data"]["creator_notes"])))
    return with_card(portrait(picture) if picture else _plain(), {"chara": older, "ccv3": as_card(character)})


def portrait(data: bytes) -> bytes:
    """Any picture as a PNG of at most 512 × 512 points, without what else was in the file. Raises UserError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if len(data) > LARGEST_FILE:
        raise UserError(f"The picture is too large: {LARGEST_FILE // 1024**2} MB at most.", param="picture")
    try:
        with quiet(), Image.open(io.BytesIO(data), formats=_KINDS) as image:
            if image.width * image.height > MOST_POINTS:
                raise UserError("The picture has too many points.", param="picture")
            small = ImageOps.exif_transpose(image).convert("RGBA")
            small.thumbnail((PORTRAIT_POINTS, PORTRAIT_POINTS))
            clean = Image.frombytes("RGBA", small.size, small.tobytes())
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError("The picture cannot be read: send PNG, JPEG, WebP or GIF.", param="picture") from None
    made = io.BytesIO()
    clean.save(made, "PNG", optimize=True)
    return made.getvalue()


def _plain() -> bytes:
    from PIL import Image

    made = io.BytesIO()
    Image.new("RGB", (PORTRAIT_POINTS, PORTRAIT_POINTS), "slategrey").save(made, "PNG")
    return made.getvalue()


def _values(data: bytes, file: str) -> Any:
    """What a file of text says. Raises UserError."""
    if len(data) > LARGEST_TEXT:
        raise UserError(f"{file} is too large for a character: {LARGEST_TEXT // 1024**2} MB at most.")
    try:
        text = text_of_bytes(data)
    except UnicodeDecodeError:
        raise UserError(
            f"{file} is no character file: it must be YAML or JSON in UTF-8, or a character card as PNG, WebP or CHARX."
        ) from None
    kind = "JSON" if text.lstrip().startswith("{") else "YAML"
    try:
        return json.loads(text, parse_constant=lambda _: None) if kind == "JSON" else parse_yaml(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        raise UserError(f"{file} is not valid {kind}.") from None
