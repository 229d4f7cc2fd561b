"""The form that a reply must have, as one Lark grammar: from GBNF, Lark, a regular expression or a JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from modules.errors import UserError
from modules.generation.structured_output.schema import prepare

NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
"""The fields of a request that have a form in them, and how they are called in sentences."""
MOST_LETTERS = 1 << 19
MOST_REPEATED = 1 << 20
"""No reply has more tokens, so nothing can have to come more often."""
ORDINARY_TOKENS = '%llguidance {"no_forcing": true}\n'
"""Where only one text may follow, llguidance would have it tokenized, and the tokenizer reads control tokens in it."""
_LARK = re.compile(r"^\s*(%llguidance\b|start\s*:)", re.MULTILINE)
_GBNF_CODE_POINT = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_REPEATED = re.compile(r"(?<!\\)(?:\\\\)*\{\s*([0-9]+)(?:\s*,\s*([0-9]+))?")
_LONGEST_COUNT = 18
"""Digits of an upper bound that is refused; one below never matters, but can be counted with."""
_MOST_DIGITS = 300


def as_lark(field: str, text: str, writing: Mapping[str, Any] | None = None) -> tuple[str, tuple[str, ...]]:
    """(grammar in llguidance's dialect, places in a JSON schema of what it does not hold). Raises UserError.

    field: grammar, regex or json_schema. writing: how JSON is written, as options of llguidance's for a schema.
    llama.cpp takes the same text: what begins with %llguidance goes to the llguidance inside it.
    """
    if len(text) > MOST_LETTERS:
        raise UserError(f"The {NAMES[field]} is longer than {MOST_LETTERS // 1024} KiB. Make it shorter.", param=field)
    _check_letters(field, text)
    if field == "json_schema":
        schema, ignored = prepare(read_schema(text), MOST_REPEATED)
        if isinstance(schema, dict):
            schema = {**schema, "x-guidance": {"coerce_one_of": True, **(writing or {}), **schema.get("x-guidance", {})}}
        return f"{ORDINARY_TOKENS}start: %json {json.dumps(schema)}", ignored
    _check_repeated(field, text)
    if field == "regex":
        from llguidance import regex_to_lark

        return f"{ORDINARY_TOKENS}start: /{regex_to_lark(text)}/", ()
    form = text if _LARK.search(text) else _gbnf_to_lark(text)
    if form.lstrip().startswith("%llguidance"):
        return f"{form.rstrip()}\n{ORDINARY_TOKENS}", ()
    return ORDINARY_TOKENS + form, ()


def read_schema(text: str) -> Any:
    """Raises UserError. A number with more digits than any that can be held is shortened, and stays too large."""
    try:
        return json.loads(text, parse_int=lambda digits: int(digits[:_MOST_DIGITS]))
    except json.JSONDecodeError as error:
        raise UserError(
            f"The JSON schema is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.", param="json_schema"
        ) from None


def _check_letters(field: str, text: str) -> None:
    """Refuse half a surrogate pair, which no reply can have in it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _half_a_pair(field, text, error.start, f"\\u{ord(text[error.start]):04x}") from None


def _half_a_pair(field: str, text: str, at: int, letter: str) -> UserError:
    line = text.count("\n", 0, at) + 1
    return UserError(
        f"The {NAMES[field]} has a mistake in line {line}: {letter} is no character; half a surrogate pair stands for none.",
        param=field,
    )


def _check_repeated(field: str, text: str) -> None:
    for least, most in _REPEATED.findall(text):
        count = most if len(most) > _LONGEST_COUNT else least
        if int(count[:20]) > MOST_REPEATED:
            raise UserError(
                f"The {NAMES[field]} has something come {count[:20]} times, and no reply is that long. Lower the count.",
                param=field,
            )


def _gbnf_to_lark(grammar: str) -> str:
    from llguidance.gbnf_to_lark import RepetitionNode, gbnf_to_lark

    # Else it writes ("a"{2}){3} as "a"{2}{3}, which is no Lark.
    RepetitionNode.is_atomic = lambda self: False
    try:
        return gbnf_to_lark(_GBNF_CODE_POINT.sub(_character, grammar.replace("\r\n", "\n")))
    except (RecursionError, UserError):
        raise
    except Exception as error:  # noqa: BLE001 - the converter raises plain Exceptions for mistakes in the grammar
        raise UserError(f"The grammar has a mistake{_line_of_rule(grammar, str(error))}: {error}", param="grammar") from None


def _character(escape: re.Match[str]) -> str:
    code = int(escape[2] or escape[3], 16)
    if 0xD800 <= code <= 0xDFFF:
        raise _half_a_pair("grammar", escape.string, escape.start(), f"\\u{code:04x}")
    if code > 0x10FFFF:
        line = escape.string.count("\n", 0, escape.start()) + 1
        raise UserError(f"The grammar has a mistake in line {line}: Unicode has no character {code:x}.", param="grammar")
    return escape[1] + (chr(code) if code >= 0x80 else f"\\x{code:02x}")


def _line_of_rule(grammar: str, message: str) -> str:
    """Where the converter names only a rule: the first line that has it."""
    name = re.match(r"Rule '(.+)' not found", message)
    lines = [number for number, line in enumerate(grammar.splitlines(), 1) if name and name[1] in line]
    return f" in line {lines[0]}" if lines else ""
