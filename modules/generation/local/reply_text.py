"""A reply's tokens as text: whole characters only, whatever way the tokenizer cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules.generation.stop_strings import REPLACEMENT

REACH = 6
"""How many earlier tokens are read along, so that spaces and joined characters come out right."""
LONGEST_CHARACTER = 4
"""No character is more tokens than it has bytes; what is not whole after that many never will be."""


class ReplyText:
    """Feed it tokens; it gives the text that is certain. Broken bytes are left out."""

    def __init__(self, tokenizer: Any, before: Sequence[int] = (), *, skip_special: bool = True) -> None:
        """before: the last tokens of the prompt, where the reply continues a text rather than starting one."""
        self._decode = _decoder(tokenizer, skip_special)
        self._tokens = list(before[-REACH:])
        self._shown = self._decode(self._tokens)
        if self._shown.endswith(REPLACEMENT):
            self._tokens, self._shown = [], ""
        self._pending = 0

    def feed(self, token: int) -> str:
        """The new text that `token` makes certain; empty while a character is not whole."""
        self._tokens.append(token)
        self._pending += 1
        text = self._decode(self._tokens)
        if text.endswith(REPLACEMENT) and self._pending < LONGEST_CHARACTER:
            return ""
        new = text[len(self._shown) :].replace(REPLACEMENT, "") if len(text) > len(self._shown) else ""
        self._forget(text)
        return new

    def _forget(self, text: str) -> None:
        """Keep a window of the last tokens: decoding stays as quick at the end of a long reply as at its beginning."""
        self._shown, self._pending = text, 0
        if text.endswith(REPLACEMENT):
            self._tokens, self._shown = [], ""
        if len(self._tokens) > 4 * REACH:
            rest = self._tokens[-REACH:]
            shown = self._decode(rest)
            if not (REPLACEMENT in shown or REPLACEMENT in text):
                self._tokens, self._shown = rest, shown


def _decoder(tokenizer: Any, skip_special: bool) -> Any:
    quick = getattr(tokenizer, "backend_tokenizer", None)
    if quick is not None:
        return lambda tokens: quick.decode(tokens, skip_special_tokens=skip_special)
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
