"""Texts are whole characters, in values of some depth: what JSON can spell besides is refused where it comes in."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from modules.errors import UserError

DEEPEST = 200
"""Levels of lists and objects within each other."""


def check_text(value: Any) -> None:
    """JSON can spell half a surrogate pair, which is no character: no tokenizer and no answer could hold it. Raises UserError.

    Nor is anything nested more deeply than `DEEPEST`, as whatever walks through it later has an end to its stack.
    """
    _check(value, DEEPEST)


def parse_json(text: str | bytes | bytearray) -> Any:
    """The value of a JSON text, by the letter of the standard: without NaN and Infinity, and as `check_text` wants it.

    Raises ValueError for everything else.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        check_text(value)
    except (RecursionError, UserError) as error:
        raise ValueError(str(error)) from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _check(value: Any, levels: int) -> None:
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
            _check_levels(levels)
            for key, item in value.items():
                _check(key, levels - 1)
                _check(item, levels - 1)
        case list() | tuple():
            _check_levels(levels)
            for item in value:
                _check(item, levels - 1)


def _check_levels(left: int) -> None:
    if left == 0:
        raise UserError(f"The request is nested too deeply: {DEEPEST} levels of lists and objects are read. Make it flatter.")
