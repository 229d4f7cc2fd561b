"""Texts are whole characters: what JSON can spell besides is refused where it comes in."""

from __future__ import annotations

from typing import Any

from modules.errors import UserError


def check_text(value: Any) -> None:
    """JSON can spell half a surrogate pair, which is no character: no tokenizer and no answer could hold it. Raises UserError."""
    match value:
        case str():
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise UserError(
                        "A text has half of a surrogate pair (\\ud800 to \\udfff); write whole characters."
                    ) from None
        case dict():
            for key, item in value.items():
                check_text(key)
                check_text(item)
        case list() | tuple():
            for item in value:
                check_text(item)
