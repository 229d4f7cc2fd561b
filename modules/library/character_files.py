"""The files that characters come in: YAML and JSON of this kind of program, Pygmalion JSON, TavernAI PNG."""

from __future__ import annotations

import base64
import binascii
import io
import json
from pathlib import Path
from typing import Any

import yaml

from modules.errors import UserError
from modules.library.character import Character
from modules.settings.yaml_text import parse_yaml

SUFFIXES = (".yaml", ".yml", ".json", ".png")
LARGEST_FILE = 20 * 1024 * 1024
"""With a picture."""
LARGEST_TEXT = 1024 * 1024
"""Bytes of a file without one."""
LONGEST_TEXT = 200_000
PORTRAIT_POINTS = 512
MOST_POINTS = 50_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
_KINDS = ("PNG", "JPEG", "WEBP", "GIF")
_TAVERN_LINE = "<START>"


def read_character(data: bytes, file: str) -> Character:
    """The character in a file of any of the known forms. Raises UserError with a sentence that names `file`."""
    if len(data) > LARGEST_FILE:
        raise UserError(f"{file} is too large for a character: {LARGEST_FILE // 1024**2} MB with its picture at most.")
    if data.startswith(_PNG):
        values = _card(data)
        if values is None:
            raise UserError(f"{file} is a picture without a character in it: a TavernAI card has one in its `chara` text.")
        return _from_values(values, file)
    if len(data) > LARGEST_TEXT:
        raise UserError(f"{file} is too large for a character: {LARGEST_TEXT // 1024**2} MB at most.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is no character file: it must be YAML, JSON, or a TavernAI PNG.") from None
    return _from_values(_mapping(text, file), file)


def has_card(path: Path) -> bool:
    """Whether a PNG file holds a character; False for any other picture."""
    data = path.read_bytes() if path.stat().st_size <= LARGEST_FILE else b""
    return data.startswith(_PNG) and (b"chara" in data or b"ccv3" in data) and _card(data) is not None


def is_picture(data: bytes) -> bool:
    """Whether a file is a TavernAI card, which is its own picture."""
    return data.startswith(_PNG)


def written(character: Character) -> str:
    """A character as YAML, only what it has."""
    values: dict[str, Any] = {
        "name": character.name,
        "your_name": character.user,
        "greeting": character.greeting,
        "context": character.context,
        "example_dialogue": character.example_dialogue,
        "turn_template": character.turn_template,
        "more_greetings": list(character.more_greetings),
    }
    return yaml.safe_dump(
        {key: value for key, value in values.items() if value}, sort_keys=False, allow_unicode=True, width=110
    )


def portrait(data: bytes) -> bytes:
    """Any picture as a PNG of at most 512 × 512 points, without what else was in the file. Raises UserError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if len(data) > LARGEST_FILE:
        raise UserError(f"The picture is too large: {LARGEST_FILE // 1024**2} MB at most.", param="picture")
    try:
        with Image.open(io.BytesIO(data), formats=_KINDS) as image:
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


def _card(data: bytes) -> Any:
    """What the `chara` text of a PNG says; None where there is none that can be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MOST_POINTS:
                return None
            image.load()  # the text may stand after the picture
            source = image.info.get("chara") or image.info.get("ccv3")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if not isinstance(source, str):
        return None
    try:
        return json.loads(base64.b64decode(source, validate=False).decode("utf-8"))
    except (binascii.Error, ValueError, RecursionError):
        return None


def _mapping(text: str, file: str) -> Any:
    try:
        if text.lstrip().startswith("{"):
            return json.loads(text)
        return parse_yaml(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        kind = "JSON" if text.lstrip().startswith("{") else "YAML"
        raise UserError(f"{file} is not valid {kind}.") from None


def _from_values(values: Any, file: str) -> Character:
    if isinstance(values, dict) and isinstance(values.get("data"), dict):  # the second and third form of TavernAI's cards
        values = values["data"]
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no character: it needs a name, and a context or a greeting.")

    def text(*names: str) -> str:
        for name in names:
            value = values.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = str(value)
            if value is not None and not isinstance(value, str):
                raise UserError(f"{file}: {name} must be a text.", param=name)
            if value and value.strip():
                if len(value) > LONGEST_TEXT:
                    raise UserError(f"{file}: {name} is too long, {LONGEST_TEXT} letters are the most.", param=name)
                return value.replace("\r\n", "\n").encode("utf-8", "replace").decode().strip()
        return ""

    name = " ".join(text("name", "bot", "char_name").split())
    if not name:
        raise UserError(f"{file} holds no character: it has no name.", param="name")
    others = values.get("more_greetings") or values.get("alternate_greetings") or []
    return Character(
        name=name,
        context=text("context") or _described(name, text),
        greeting=text("greeting", "char_greeting", "first_mes"),
        example_dialogue=_without_marks(text("example_dialogue", "mes_example")),
        user=" ".join(text("your_name", "user").split()),
        turn_template=text("turn_template"),
        more_greetings=tuple(
            line.encode("utf-8", "replace").decode().strip() for line in others if isinstance(line, str) and line.strip()
        )
        if isinstance(others, list)
        else (),
    )


def _described(name: str, text: Any) -> str:
    """A context from the parts that Pygmalion's and TavernAI's files have instead of one."""
    parts = [text("system_prompt"), text("char_persona", "description")]
    if personality := text("personality"):
        parts.append(f"{name}'s personality: {personality}")
    if scenario := text("world_scenario", "scenario"):
        parts.append(f"Scenario: {scenario}")
    return "\n".join(part for part in parts if part)


def _without_marks(dialogue: str) -> str:
    """TavernAI puts <START> before each example."""
    lines = [line for line in dialogue.split("\n") if line.strip().upper() != _TAVERN_LINE]
    return "\n".join(lines).strip()
