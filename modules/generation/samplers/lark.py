"""The form that a reply must have, as one Lark grammar: from GBNF, Lark, a regular expression or a JSON schema."""

from __future__ import annotations

import json
import re

from modules.errors import UserError
from modules.generation.sampling import SamplingParams

_LARK = re.compile(r"^\s*(%llguidance\b|start\s*:)", re.MULTILINE)
_GBNF_CODE_POINT = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_PLACE = re.compile(r"(?:at )?(\d+)\(\d+\): ")


def as_lark(sampling: SamplingParams) -> str | None:
    """The form that a reply must have, as one Lark grammar in llguidance's dialect; None where it is free. Raises UserError.

    llama.cpp takes the same text: what begins with %llguidance goes to the llguidance inside it.
    """
    if sampling.json_schema:
        form, field = f"start: %json {_checked_json(sampling.json_schema)}", "json_schema"
    elif sampling.regex:
        from llguidance import regex_to_lark

        form, field = f"start: /{regex_to_lark(sampling.regex)}/", "regex"
    elif sampling.grammar:
        form = sampling.grammar if _LARK.search(sampling.grammar) else _gbnf_to_lark(sampling.grammar)
        field = "grammar"
    else:
        return None
    lark = form if form.lstrip().startswith("%llguidance") else "%llguidance {}\n" + form
    _check(lark, sampling, field)
    return lark


def _checked_json(schema: str) -> str:
    try:
        return json.dumps(json.loads(schema))
    except json.JSONDecodeError as error:
        raise UserError(
            f"The JSON schema is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.", param="json_schema"
        ) from None


def _gbnf_to_lark(grammar: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(_GBNF_CODE_POINT.sub(_character, grammar.replace("\r\n", "\n")))
    except Exception as error:  # noqa: BLE001 - the converter raises plain Exceptions for mistakes in the grammar
        raise UserError(f"The grammar has a mistake{_line_of_rule(grammar, str(error))}: {error}", param="grammar") from None


def _character(escape: re.Match[str]) -> str:
    code = int(escape[2] or escape[3], 16)
    return escape[1] + (chr(code) if code >= 0x80 else f"\\x{code:02x}")


def _line_of_rule(grammar: str, message: str) -> str:
    """Where the converter names only a rule: the first line that has it."""
    name = re.match(r"Rule '(.+)' not found", message)
    lines = [number for number, line in enumerate(grammar.splitlines(), 1) if name and name[1] in line]
    return f" in line {lines[0]}" if lines else ""


def _check(lark: str, sampling: SamplingParams, field: str) -> None:
    from llguidance import LLMatcher

    message = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark), None)
    if not message:
        return
    if field != "grammar":
        what = {"regex": "regular expression", "json_schema": "JSON schema"}[field]
        raise UserError(f"The {what} cannot be used: {short(message)}", param=field)
    shift = lark.count("\n") - sampling.grammar.count("\n") if lark.endswith(sampling.grammar) else None
    place = _PLACE.search(message)
    if place is None:
        raise UserError(f"The grammar has a mistake: {short(message)}", param=field)
    line = int(place[1])
    where = f"in line {line - shift}" if shift is not None else f"in the rule {lark.splitlines()[line - 1].strip()!r}"
    raise UserError(f"The grammar has a mistake {where}: {short(message)}", param=field)


def short(message: str) -> str:
    """llguidance's message without its place and its picture of the source."""
    lines = [line for line in _PLACE.sub("", message, count=1).splitlines() if not re.match(r"\s*(\d+ \||\^)", line)]
    return " ".join(line.strip() for line in lines if line.strip())
