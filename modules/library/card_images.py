"""Cards in pictures: PNG and APNG with a `ccv3` or `chara` text, WebP with the comment that SillyTavern wrote into its EXIF."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from typing import Any

from modules.library.card_values import clean

PNG = b"\x89PNG\r\n\x1a\n"
_EXIF, _USER_COMMENT = 0x8769, 0x9286
_COMMENT_CODES = (b"ASCII\0\0\0", b"UNICODE\0", b"JIS\0\0\0\0\0", b"\0" * 8)
MOST_POINTS = 50_000_000


def is_picture(data: bytes) -> bool:
    """Whether a file is a PNG or WebP, which a card can be in, and then is its own picture."""
    return data.startswith(PNG) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")


def may_hold_card(data: bytes) -> bool:
    """Whether it is worth reading a picture for its card."""
    return is_picture(data) and any(mark in data for mark in (b"ccv3", b"chara", b"Chara", b"EXIF"))


def card_in(data: bytes) -> tuple[Any, bool]:
    """(what the card in a picture says, None where there is none that can be read; whether a newer one in it is broken)."""
    broken = False
    for source in _sources(data):
        try:
            return _decoded(source), broken
        except (binascii.Error, ValueError, RecursionError):
            broken = True
    return None, broken


def with_card(picture: bytes, cards: dict[str, Any]) -> bytes:
    """A PNG with cards in it. cards: {the name of a text: the card}."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    for name, card in cards.items():
        info.add_text(name, base64.b64encode(json.dumps(card, ensure_ascii=False).encode()).decode())
    made = io.BytesIO()
    with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
        image.save(made, "PNG", pnginfo=info)
    return made.getvalue()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While Pillow reads what is damaged: it warns of EXIF that it passes over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _sources(data: bytes) -> Iterator[str | bytes]:
    """The texts that may be a card, the newest form first."""
    from PIL import Image, UnidentifiedImageError

    texts: dict[str, Any] = {}
    try:
        with quiet(), Image.open(io.BytesIO(data), formats=["PNG", "WEBP"]) as image:
            if image.width * image.height <= MOST_POINTS and image.format == "PNG":
                with contextlib.suppress(OSError, ValueError, SyntaxError):  # of one that is cut off the beginning is known
                    image.load()  # a text may stand after the picture
            texts = {str(key).lower(): value for key, value in image.info.items()}
            comment = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT) if "exif" in texts else None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, KeyError, TypeError, Image.DecompressionBombError):
        return
    yield from (text for name in ("ccv3", "chara") if isinstance(text := texts.get(name), str))
    if isinstance(comment, str | bytes):
        yield comment


def _decoded(source: str | bytes) -> Any:
    """JSON, plain, in base64, or as numbers of its bytes. Raises ValueError."""
    data = source.encode("utf-8", "surrogateescape") if isinstance(source, str) else source
    data = next((data[len(code) :] for code in _COMMENT_CODES if data.startswith(code)), data).strip(b"\0 \r\n\t")
    if data[:1] not in (b"{", b""):
        plain = all(part.isdigit() and int(part) < 256 for part in data.split(b",")) if b"," in data[:4] else False
        data = bytes(int(part) for part in data.split(b",")) if plain else base64.b64decode(data, validate=False)
    found = json.loads(data.decode("utf-8-sig", "strict"))
    if not isinstance(found, dict):
        raise ValueError("no card")
    return clean(found)
