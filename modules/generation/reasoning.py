"""Where a model thinks aloud: the marks that models put around it, and the text without it."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Segment:
    """A stretch of a message that is all thinking or all text: characters start to end."""

    kind: Kind
    start: int
    end: int


def segments(text: str) -> list[Segment]:
    """Where a model thinks aloud, by the marks that models put around it; a mark without its end is still thinking."""
    lead = len(text) - len(text.lstrip())
    for opening, closing in _THINKING:
        opened = text.startswith(opening, lead)
        end = text.find(closing)
        if not opened and end < 0:
            continue
        start = lead + len(opening) if opened else 0
        if end < start:
            return [Segment("thinking", start, len(text))] if opened else [Segment("text", 0, len(text))]
        found = [Segment("thinking", start, end)] if text[start:end].strip() else []
        return [*found, Segment("text", end + len(closing), len(text))]
    return [Segment("text", 0, len(text))]


def without_reasoning(text: str) -> str:
    """What a model says besides what it thinks.

    >>> without_reasoning("<think>Hm.</think>\\n\\nBecause of the air.")
    'Because of the air.'
    """
    return "".join(text[part.start : part.end] for part in segments(text) if part.kind == "text").strip()
