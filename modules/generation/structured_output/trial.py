"""A form is tried: whether it can be compiled, at what cost, whether a reply of it can end, and whether a reply follows it."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modules.errors import UserError
from modules.generation.structured_output.builtin import Library, Matcher
from modules.generation.structured_output.lark import MOST_REPEATED, NAMES, as_lark, read_schema
from modules.generation.structured_output.schema import place_of_fault, places_of
from modules.generation.structured_output.size import shortest

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

COMPILE_SECONDS = 0.1
"""Of computing, for what the engine does before the first token: on llama.cpp other replies wait for it."""
STEP_SECONDS = 0.02
EXCESS_SECONDS = 0.15
"""How long one piece of a reply may compute, and by how much all of them together may exceed that."""
SEARCH_SECONDS = 0.2
"""Of computing, from the start of the trial on, for finding where a mistake is."""
FREE_SPACE = {"whitespace_pattern": r"\x20|\n{1,2}[\x20\t]{0,20}"}
"""Between two parts of JSON comes nothing, a space, or a new line with its indentation, as in llama.cpp's own grammars."""
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The llguidance in llama.cpp lets white space come again and again; there JSON has the form that Python's json.dumps gives it."""
NUMBERED = re.compile(r"<\[[^\]\n]*\]>")
"""Tokens that a grammar names by their numbers."""
LONGEST = 200
"""Letters of what is quoted in a sentence."""
_END = 256
_WORD = re.compile(r"(\S{40})\S{40,}")
"""What is quoted in a message and has so many letters without a space."""
_PLACE = re.compile(r"(?:at )?(\d+)\(\d+\): ")
_TERMINAL = re.compile(r"^([A-Z_][A-Z0-9_-]*)(?:\.\d+)?\s*:", re.MULTILINE)
_START = re.compile(r"^start\b[^:\n]*:", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """A form as a request has it. special: the model's control tokens that a grammar names."""

    field: str
    text: str
    special: Sequence[str] = ()


class Trial:
    """A form that can be used. `matcher` is at the beginning of a reply; without one there is nobody to follow a reply for."""

    def __init__(self, lark: str, ignored: Sequence[str], matcher: Matcher | None, special: Sequence[str]) -> None:
        self.lark = lark
        self.ignored = ignored
        self._matcher = matcher
        self._excess = 0.0
        self._special = {name: _END + 1 + at for at, name in enumerate(special)}

    def follow(self, pieces: Sequence[str | dict[str, str]], last: bool) -> dict[str, bool]:
        """Whether a reply may go on so, and where it is the last that comes, whether it may end there.

        pieces: texts, and control tokens as {"token": its text}; one of those may be the end of the reply.
        A form that takes long to follow fits no more after a while: the engine takes as long.
        """
        began = time.process_time()
        fits = self._fits(pieces) and (not last or (self._matcher is not None and self._matcher.accepting))
        self._excess += max(0.0, time.process_time() - began - STEP_SECONDS)
        return {"fits": fits and self._excess < EXCESS_SECONDS}

    def _fits(self, pieces: Sequence[str | dict[str, str]]) -> bool:
        assert self._matcher is not None
        for piece in pieces:
            if isinstance(piece, str):
                fits = all(self._matcher.consume(byte) for byte in piece.encode())
            else:
                may_end = self._matcher.accepting
                fits = self._matcher.consume(self._special[piece["token"]]) or may_end
            if not fits:
                return False
        return True


def try_form(asked: Asked, library: Library | None) -> Trial:
    """Raises UserError. library: llama.cpp's llguidance, where it is the one that will hold the reply."""
    began = time.process_time()
    field = asked.field
    try:
        lark, ignored = as_lark(field, asked.text, ONE_LINE if library is not None else FREE_SPACE)
    except RecursionError:
        raise UserError(f"The {NAMES[field]} is nested too deeply. Make it flatter.", param=field) from None
    guide = _guide(asked)
    problem, log, warnings = _compiled(lark, guide)
    if problem:

        def fails(form: str) -> bool:
            return time.process_time() - began < SEARCH_SECONDS and bool(_problem(form, guide))

        raise _mistake(asked, lark, problem, fails)
    length = shortest(log)
    if length > MOST_REPEATED:
        endless = length == float("inf")
        raise _no_reply(field, "has no reply that ends" if endless else "has no reply that is short enough to be written")
    if field == "grammar" and ("&" in asked.text or "~" in asked.text):
        _check_terminals(lark, guide)
    if field == "json_schema" and any("oneOf" in warning for warning in warnings):
        ignored += places_of("oneOf", read_schema(asked.text))
    if library is None:
        return Trial(lark, ignored, None, asked.special)
    compiling = time.process_time()
    matcher = Matcher(library, lark, _tokens(asked, b"\xff"), _END)
    if matcher.error() or not any(matcher.mask()):
        raise _mistake(asked, lark, matcher.error() or "nothing may come in the reply", lambda form: False)
    if time.process_time() - compiling > COMPILE_SECONDS:
        raise too_much(field)
    return Trial(lark, ignored, matcher, asked.special)


def too_much(field: str) -> UserError:
    """What is said of a form that costs more than it may."""
    return UserError(
        f"The {NAMES[field]} unfolds to more than can be handled. Lower its counts, or nest fewer alternatives in each other.",
        param=field,
    )


def _no_reply(field: str, why: str) -> UserError:
    return UserError(f"The {NAMES[field]} {why}. Give each part that refers to itself a way out.", param=field)


# --- by the llguidance of our own engine


def _tokens(asked: Asked, mark: bytes = b"") -> list[bytes]:
    """A vocabulary of the bytes, the end of a reply, and the control tokens that are named."""
    return [
        *(bytes([byte]) for byte in range(256)),
        mark + b"<end of the reply>",
        *(mark + name.encode() for name in asked.special),
    ]


class _Bytes:
    """A tokenizer in the shape that llguidance takes: one token for each byte."""

    eos_token_id = _END
    bos_token_id = None

    def __init__(self, asked: Asked) -> None:
        self.tokens = _tokens(asked)
        self.special_token_ids = list(range(_END, len(self.tokens)))

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _guide(asked: Asked) -> LLTokenizer:
    from llguidance import LLTokenizer
    from llguidance._tokenizer import TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes(asked)), eos_token=_END)


def _matcher(lark: str, guide: LLTokenizer, log_level: int = 0) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    # Whether the model has a token of some number is its own engine's to tell.
    known = LLMatcher.grammar_from_lark(NUMBERED.sub(f"<[{_END}]>", lark))
    return LLMatcher(guide, known, log_level=log_level, limits=LLParserLimits(verbose_errors=False))


def _compiled(lark: str, guide: LLTokenizer) -> tuple[str, list[str], list[str]]:
    """(what is wrong, the log with all rules, warnings)."""
    with _log() as log:
        matcher = _matcher(lark, guide, log_level=3)
        problem = _first_problem(matcher)
    return problem, log, [] if problem else matcher.get_grammar_warnings()


def _problem(lark: str, guide: LLTokenizer) -> str:
    return _first_problem(_matcher(lark, guide))


def _first_problem(matcher: LLMatcher) -> str:
    """What is wrong with a grammar; it is also that nothing may come first."""
    if not matcher.is_error():
        mask = matcher.compute_bitmask()
        if matcher.is_error() or not any(mask):
            return "nothing may come in the reply"
    return matcher.get_error()


@contextmanager
def _log() -> Iterator[list[str]]:
    """What is written to stderr meanwhile, line by line: llguidance tells its rules nowhere else."""
    lines: list[str] = []
    before = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(before, 2)
            os.close(before)
        log.seek(0)
        lines += log.read().decode(errors="replace").splitlines()


def _check_terminals(lark: str, guide: LLTokenizer) -> None:
    """Refuse a terminal that matches no text, which & and ~ can make; where it is not the first, nothing else tells it."""
    rest = _START.sub("the_former_start:", lark)
    for name in _TERMINAL.findall(lark):
        if _problem(f"{rest}\nstart: {name}\n", guide):
            raise UserError(f"The grammar cannot be used: {name} matches no text at all.", param="grammar")


# --- what is said of mistakes


def _mistake(asked: Asked, lark: str, problem: str, fails: Callable[[str], bool]) -> UserError:
    """fails: whether a grammar cannot be used, for finding the part of a schema that is at fault."""
    field, why, where = asked.field, _short(problem), ""
    found = _PLACE.search(problem)
    if field == "json_schema":
        where = place_of_fault(read_schema(asked.text), problem, lambda part: fails(as_lark(field, json.dumps(part))[0]))
        what = f"The JSON schema cannot be used{f' at {_cut(where)}' if where else ''}"
    elif field == "regex" or found is None:
        what = f"The {NAMES[field]} cannot be used"
    else:
        what = f"The grammar has a mistake {_where(asked.text, lark, int(found[1]))}"
    return UserError(
        f"{what}: {why.removeprefix('failed to compile JSON schema: ')}", param=f"{field}.{where}" if where else field
    )


def _where(text: str, lark: str, line: int) -> str:
    """A line of the grammar as it came, or the rule as it is in Lark where it was translated."""
    own = text.rstrip()
    before = lark[: lark.find(own)].count("\n") if own in lark else lark.count("\n")
    if 0 < line - before <= text.count("\n") + 1:
        return f"in line {line - before}"
    return f"in the rule {_cut(lark.splitlines()[line - 1].strip())!r}"


def _short(message: str) -> str:
    """llguidance's message without its place and its picture of the source."""
    lines = [line for line in _PLACE.sub("", message, count=1).splitlines() if not re.match(r"\s*(\d+ \||\^)", line)]
    return _cut(_WORD.sub(r"\1…", " ".join(line.strip() for line in lines if line.strip())))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
