"""From pieces of text to what may be shown: whole characters only, and nothing of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

REPLACEMENT = "�"


class Utf8Pieces:
    """Joins bytes that arrive in arbitrary pieces into whole characters; broken bytes are left out."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def feed(self, piece: bytes) -> str:
        return self._decoder.decode(piece)


class StopTexts:
    """Passes text through until one of `stops` appears, holding back what could be the start of one.

    >>> watch = StopTexts(["END"])
    >>> watch.feed("the E"), watch.feed("N"), watch.feed("gine"), watch.feed(" END of it")
    ('the ', '', 'ENgine', ' ')
    >>> watch.found
    'END'
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """The text that is now safe to show. Once `found` is set, nothing more comes."""
        if self.found is not None:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        self._held = ""
        first = min(
            ((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0),
            key=lambda hit: (hit[0], -len(hit[1])),
            default=None,
        )
        if first is not None:
            at, self.found = first
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and turned out not to be a stop text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning (not the whole) of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
