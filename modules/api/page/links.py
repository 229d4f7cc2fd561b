"""Plain addresses in Markdown as links, as people expect them: without the stop after them, and ended by Chinese punctuation."""

from __future__ import annotations

import re

from markdown_it.rules_core import StateCore
from markdown_it.token import Token

_ENDS = r"\s<>\"`|\\^{}“”‘’「」『』《》〈〉【】（），。；：！？、…"
_LETTER = r"[^\W\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]"
_ADDRESS = re.compile(
    rf"(?<![a-z0-9_@/.+-])(?:https?://|www\.(?=[a-z0-9]))(?:\[[0-9a-f:.]+\](?::\d+)?|{_LETTER}(?:{_LETTER}|[.:@%~-])*)"
    rf"(?:[/?#][^{_ENDS}]*)?",
    re.IGNORECASE,
)
"""The host has no Chinese letters, so that 见https://example.org即可 ends where it should; a path may (…/wiki/潮汐)."""
_CLOSING = {")": "(", "]": "["}


def link_addresses(state: StateCore) -> None:
    """A rule of the parser: addresses in the text, but for those in links and code, become links."""
    for token in state.tokens:
        if token.type != "inline" or not token.children or ("://" not in token.content and "www." not in token.content.lower()):
            continue
        children: list[Token] = []
        inside = 0
        for child in token.children:
            inside += child.nesting if child.type in ("link_open", "link_close") else 0
            children += [child] if child.type != "text" or inside else _linked(state, child)
        token.children = children


def _linked(state: StateCore, text: Token) -> list[Token]:
    pieces: list[Token] = []
    at = 0
    for found in _ADDRESS.finditer(text.content):
        shown = _trimmed(found[0])
        address = state.md.normalizeLink(shown if "://" in shown else f"https://{shown}")
        named = "://" in shown or "." in shown.removeprefix("www.")
        if not named or not state.md.validateLink(address):
            continue
        if found.start() > at:
            pieces.append(Token("text", "", 0, content=text.content[at : found.start()]))
        pieces.append(Token("link_open", "a", 1, attrs={"href": address}))
        pieces.append(Token("text", "", 0, content=shown))
        pieces.append(Token("link_close", "a", -1))
        at = found.start() + len(shown)
    if not pieces:
        return [text]
    if at < len(text.content):
        pieces.append(Token("text", "", 0, content=text.content[at:]))
    return pieces


def _trimmed(address: str) -> str:
    """Without what belongs to the sentence: stops, quotes, and a bracket that was opened before the address.

    >>> [_trimmed(text) for text in ("https://a.org/x.", "https://a.org/x_(y)", "https://a.org/x).", "https://a.org/?a=1&b=2,")]
    ['https://a.org/x', 'https://a.org/x_(y)', 'https://a.org/x', 'https://a.org/?a=1&b=2']
    """
    while address:
        last = address[-1]
        unopened = last in _CLOSING and address.count(last) > address.count(_CLOSING[last])
        if not unopened and last not in ".,;:!?'*_~":
            break
        address = address[:-1]
    return address
