"""Where a model thinks aloud: the marks that models put around it, and the text without it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "thinking"]
_THINKING = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)
_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})(.*)$")
_BACKTICKS = re.compile(r"`+")


@dataclass(frozen=True)
class Segment:
    """A stretch of a message that is all thinking or all text: characters start to end."""

    kind: Kind
    start: int
    end: int


def opened_by(prompt: str) -> str:
    """The mark that a prompt ends with, which the model's reply goes on from; "" where it ends with none.

    >>> opened_by("<|im_start|>assistant\\n<think>\\n")
    '<think>'
    """
    prompt = prompt[-100:].rstrip()
    return next((opening for opening, _ in _THINKING if prompt.endswith(opening)), "")


def opening_of(closing: str) -> str:
    """The mark that begins what `closing` ends; "" where it is no such mark."""
    return next((opening for opening, end in _THINKING if end == closing), "")


def segments(text: str, opened: str | None = None) -> list[Segment]:
    """Where a model thinks aloud: up to the mark that ends what the reply begins with; without its end, all is thinking.

    opened: the mark that the prompt ended with ("" for none). None where that is not known (files of other programs, engines
    that show no template): then the mark of an end that stands alone on its line tells that the prompt opened it. Marks inside
    code are only spoken of.
    """
    lead = len(text) - len(text.lstrip())
    for opening, closing in _THINKING:
        begins = text.startswith(opening, lead)
        if not (begins or opened == opening or (opened is None and closing in text)):
            continue
        start = lead + len(opening) if begins else 0
        told = begins or opened == opening
        ends = (end for end, alone in _ends(text, start, opening, closing) if told or alone)
        end = next(ends, None)
        if end is None:
            if told:
                return [Segment("thinking", start, len(text))]
            continue
        found = [Segment("thinking", start, end)] if text[start:end].strip() else []
        return [*found, Segment("text", end + len(closing), len(text))]
    return [Segment("text", 0, len(text))]


def _ends(text: str, start: int, opening: str, closing: str) -> Iterator[tuple[int, bool]]:
    """Where `closing` stands in text[start:] and ends the thinking: (its place, whether it is alone on its line).

    Not where it is spoken of: between back-ticks of one line (the second may still be on its way), or in fenced code. In a fence that was left open, one that is
    alone on its line and has no `opening` before it in the fence ends the thinking all the same.
    """
    fence, paired = "", False
    at, last = start, text.rfind(closing)
    while at <= last:
        end = text.find("\n", at)
        line = text[at : len(text) if end < 0 else end]
        marker = _FENCE.match(line)
        place = line.find(closing)
        if marker and (not fence or (marker[1].startswith(fence) and not marker[2].strip())):
            fence, paired = ("" if fence else marker[1]), False
        elif fence:
            if place >= 0 and line.strip() == closing and not paired:
                yield at + place, True
            paired = paired or opening in line
        elif place >= 0:
            spans = _code_spans(line)
            while place >= 0:
                arriving = end < 0 and line.endswith("`" + closing) and place + len(closing) == len(line)
                if not arriving and not any(begun < place < over for begun, over in spans):
                    yield at + place, line.strip() == closing
                place = line.find(closing, place + 1)
        if end < 0:
            return
        at = end + 1


def _code_spans(line: str) -> list[tuple[int, int]]:
    """Where code between back-ticks begins and ends in a line."""
    spans, begun = [], None
    for ticks in _BACKTICKS.finditer(line):
        if begun is None:
            begun = ticks
        elif len(begun[0]) == len(ticks[0]):
            spans.append((begun.start(), ticks.end()))
            begun = None
    return spans


def without_reasoning(text: str, opened: str | None = None) -> str:
    """What a model says besides what it thinks. opened: see `segments`.

    >>> without_reasoning("<think>Hm.</think>\\n\\nBecause of the air.")
    'Because of the air.'
    """
    return "".join(text[part.start : part.end] for part in segments(text, opened) if part.kind == "text").strip()
