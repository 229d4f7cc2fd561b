"""Pictures that people attach to messages: kept with the chats, each for its owner alone."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

from modules.chats.owned_rows import OwnedTable
from modules.errors import NotFound, UserError
from modules.generation.types import Image

LARGEST_FILE = 20 * 1024 * 1024
MOST_POINTS = 50_000_000
MOST_PICTURES = 16
"""Of one message."""
THUMBNAIL_POINTS = 480
KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
UNUSED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Picture:
    """A picture that is kept. width and height in points."""

    id: int
    kind: str
    width: int
    height: int


class PictureTable(OwnedTable):
    """The pictures of one user, in the file of the chats. Those that no message names are forgotten after a day."""

    def add(self, data: bytes) -> Picture:
        """Keep a picture; the same one twice is kept once. Raises UserError for what is no picture."""
        kind, width, height, thumbnail = _looked_at(data)
        mark = hashlib.sha256(data).hexdigest()
        with self._transaction() as own:
            row = own.db.execute("SELECT id FROM pictures WHERE owner = ? AND sha256 = ?", (self._owner, mark)).fetchone()
            if row is not None:
                own.db.execute("UPDATE pictures SET created = ? WHERE id = ?", (time.time(), row["id"]))
                return Picture(row["id"], kind, width, height)
            cursor = own.db.execute(
                "INSERT INTO pictures (owner, sha256, kind, width, height, data, thumbnail, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (self._owner, mark, kind, width, height, data, thumbnail, time.time()),
            )
            return Picture(cursor.lastrowid or 0, kind, width, height)

    def data(self, picture_id: int) -> tuple[bytes, str]:
        """(the file as it came, its media type). Raises NotFound, for the pictures of others too."""
        return self._one(picture_id, "data")

    def thumbnail(self, picture_id: int) -> tuple[bytes, str]:
        """(a small WebP, its media type). Raises NotFound."""
        return self._one(picture_id, "thumbnail")[0], "image/webp"

    def images(self, ids: Sequence[int]) -> tuple[Image, ...]:
        """What a model is shown. Raises NotFound."""
        return tuple(Image(self.data(id_)[0]) for id_ in ids)

    def check(self, ids: Sequence[int]) -> tuple[int, ...]:
        """`ids`, if all are pictures of the user. Raises UserError."""
        if len(ids) > MOST_PICTURES:
            raise UserError(f"A message can have {MOST_PICTURES} pictures.", param="pictures")
        with self._reading() as own:
            rows = own.db.execute(
                "SELECT id FROM pictures WHERE owner = ? AND id IN (SELECT value FROM json_each(?))",
                (self._owner, json.dumps(list(ids))),
            ).fetchall()
        if len(rows) != len(set(ids)):
            raise NotFound("One of the pictures is gone: attach it again.")
        return tuple(ids)

    def _one(self, picture_id: int, column: str) -> tuple[bytes, str]:
        with self._reading() as own:
            row = own.db.execute(
                f"SELECT {column} AS data, kind FROM pictures WHERE id = ? AND owner = ?", (picture_id, self._owner)
            ).fetchone()
        if row is None:
            raise NotFound("There is no such picture.")
        return row["data"], KINDS[row["kind"]]


def kind_of(data: bytes) -> str:
    """PNG, JPEG, WEBP or GIF, by the first bytes; PNG for what is none of them."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return "GIF" if data[:4] == b"GIF8" else "PNG"


def _looked_at(data: bytes) -> tuple[str, int, int, bytes]:
    """(kind, width, height, a small WebP) of a picture file. Raises UserError."""
    from PIL import Image as pillow
    from PIL import ImageOps, UnidentifiedImageError

    if len(data) > LARGEST_FILE:
        raise UserError(f"The picture is too large: {LARGEST_FILE // 1024**2} MB at most.", param="picture")
    try:
        with pillow.open(io.BytesIO(data), formats=tuple(KINDS)) as picture:
            kind, (width, height) = picture.format or "", picture.size
            if width * height > MOST_POINTS:
                raise UserError(f"The picture has {width}×{height} points; {MOST_POINTS // 1_000_000} million are the most.")
            small = ImageOps.exif_transpose(picture).convert("RGBA")
            small.thumbnail((THUMBNAIL_POINTS, THUMBNAIL_POINTS))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, pillow.DecompressionBombError):
        raise UserError("The picture cannot be read: send PNG, JPEG, WebP or GIF.", param="picture") from None
    made = io.BytesIO()
    small.save(made, "WEBP", quality=82)
    return kind, width, height, made.getvalue()


def forget_unused(db: sqlite3.Connection) -> None:
    """Delete the pictures of all users that no message names and that are older than UNUSED_SECONDS."""
    db.execute(
        "DELETE FROM pictures WHERE created < ? AND id NOT IN"
        " (SELECT value FROM messages, json_each(messages.extra, '$.pictures') WHERE messages.extra LIKE '%\"pictures\"%')",
        (time.time() - UNUSED_SECONDS,),
    )
