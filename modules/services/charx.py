"""CHARX, the zip file of Character Card V3: `card.json` and the pictures of the character, of which the main one comes in."""

from __future__ import annotations

import io

from modules.chats.archive import Archive
from modules.errors import UserError
from modules.library.cards import asset_uri
from modules.library.character_files import LARGEST_FILE, LARGEST_TEXT, Read, read_file

_CARD = "card.json"
_MOST_FILES = 5000
_LARGEST = 500 * 1024**2
_INSIDE = ("embeded://", "embedded://")
"""Before the path of an asset in the file; the first is how the specification spells it."""
_JPEG = b"\xff\xd8\xff"


def is_charx(data: bytes) -> bool:
    """Whether a file is a zip, also behind a JPEG that shows what is in it."""
    return data.startswith(b"PK\3\4") or (data.startswith(_JPEG) and b"PK\5\6" in data[-66_000:])


def read_charx(data: bytes, file: str) -> tuple[Read, bytes | None]:
    """(the character, its picture). Raises UserError."""
    try:
        archive = Archive(io.BytesIO(data), most_files=_MOST_FILES, largest=_LARGEST)
        if _CARD not in archive:
            raise UserError(f"{file} holds no character: a CHARX file has a {_CARD}.")
        card = archive.read(_CARD, LARGEST_TEXT)
    except UserError as error:
        raise UserError(error.message if file in error.message else f"{file}: {error.message}") from None
    read = read_file(card, file)
    paths = list(_pictures(read.character.others.get("assets")))
    main = next((path for path in paths if path in archive), None)
    try:
        return read, archive.read(main, LARGEST_FILE) if main else None
    except UserError:
        return read, b""  # it is told that the picture cannot be read


def _pictures(assets: object) -> list[str]:
    """The paths of the pictures of the character, the main one first."""
    icons = (
        [asset for asset in assets if isinstance(asset, dict) and asset.get("type") == "icon"]
        if isinstance(assets, list)
        else []
    )
    icons.sort(key=lambda icon: icon.get("name") != "main")
    return [uri.removeprefix(mark) for icon in icons for mark in _INSIDE if (uri := asset_uri(icon)).startswith(mark)]
