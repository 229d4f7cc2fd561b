"""What the server says, in the language of whoever looks: locales/sentences.LANGUAGE.json has each sentence by its English template.

The rooms below write English, and know neither the page nor who looks: a refusal, the progress of a load, the reason why a
training run ended. A template is the sentence as the source has it, with {1}, {2}, … (or {name}) for its values. The API stays
English.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.i18n.catalogs import LANGUAGES, LOCALES
from modules.settings.paths import path_of

LONGEST = 4000
"""Letters: what is longer is the text of somebody else, and is shown as it is."""
SCOPE_KEY = "textloom.language"
_LISTS = {", or ": "，或", "; ": "；", ", ": "，"}
_PLACE = re.compile(r"\{(\w+)\}")
_DEEPEST = 4
"""Sentences within each other; what goes deeper, or has more of them in a row, is the text of somebody else as well."""
_MOST_SENTENCES = 20
_language: ContextVar[str] = ContextVar("language", default="en")
"""Of the request that is being answered."""


@dataclass(frozen=True)
class Template:
    """literals: the English text around its values; places: their names; written: the same in another language, with {PLACE}."""

    literals: tuple[str, ...]
    places: tuple[str, ...]
    written: str

    @cached_property
    def has_words(self) -> bool:
        """Whether it can be told by its own words; others, such as "{1}: {2}", only by the last value."""
        return sum(map(str.isalpha, "".join(self.literals))) > 2

    @cached_property
    def has_comma(self) -> bool:
        """Whether what looks like a list may be this sentence."""
        return self.has_words and any(comma in literal for literal in self.literals for comma in _LISTS)

    @classmethod
    def read(cls, english: str, written: str) -> Template:
        parts = _PLACE.split(english)
        return cls(tuple(parts[::2]), tuple(parts[1::2]), written)

    def filled(self, values: Sequence[str]) -> str:
        """The sentence in the other language."""
        by_place = dict(zip(self.places, values, strict=True))
        return _PLACE.sub(lambda place: by_place[place[1]], self.written).strip()

    def values(self, text: str) -> tuple[str, ...] | None:
        """What stands in the places of `text`, where it is this sentence; each is as short as can be."""
        first, *between = self.literals
        if not text.startswith(first):
            return None
        if not between:
            return () if text == first else None
        at, values = len(first), []
        for literal in between[:-1]:
            end = text.find(literal, at)
            if end < 0:
                return None
            values.append(text[at:end])
            at = end + len(literal)
        end = len(text) - len(between[-1])
        if end < at or not text.endswith(between[-1]):
            return None
        return (*values, text[at:end])


@lru_cache(maxsize=len(LANGUAGES))
def templates(language: str) -> tuple[Template, ...]:
    """The sentences that are known in a language, those with the most words of their own first."""
    path = LOCALES / f"sentences.{language}.json"
    table: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = [Template.read(english, written) for english, written in table.items()]
    return tuple(sorted(known, key=lambda template: -sum(map(len, template.literals))))


def said(text: str) -> str:
    """What the server says, in the language of the request that is being answered; as it is where it is not known."""
    return in_language(text, _language.get())


@lru_cache(maxsize=1024)
def in_language(text: str, language: str) -> str:
    """`text` in `language`, sentence by sentence where it is several.

    >>> in_language("Tiny is still being loaded. Try again in a moment.", "zh")
    'Tiny 仍在加载，请稍后再试。'
    """
    if not text or len(text) > LONGEST or not templates(language):
        return text
    return _sentences(text, language, 0) or text


def _sentences(text: str, language: str, depth: int) -> str | None:
    """One sentence or several; None where none of them is known."""
    if (whole := _written(text, language, depth)) is not None:
        return whole
    sentences = re.split(r"(?<=[.!?…]) ", text)
    if not 1 < len(sentences) <= _MOST_SENTENCES:
        return None
    written = [_written(sentence, language, depth) for sentence in sentences]
    if not any(written):
        return None
    return " ".join(new or old for new, old in zip(written, sentences, strict=True)).replace("。 ", "。")


def _written(text: str, language: str, depth: int, *, with_comma: bool = False) -> str | None:
    """One sentence with its values; None where it is not known.

    depth: how many sentences it is a value of. with_comma: only sentences that have one themselves.
    """
    for template in templates(language):
        if with_comma and not template.has_comma:
            continue
        # A sentence whose last value is empty loses the space before it.
        values = template.values(text)
        if values is None and template.literals[-1] == "":
            values = template.values(f"{text} ")
        if values is not None:
            written = [_value(value, language, depth + 1) for value in values]
            if template.has_words or written[-1] != values[-1]:
                return template.filled(written)
    return None


def _value(text: str, language: str, depth: int) -> str:
    """A value of a sentence: it may be sentences, a list of some, a count of something, or a name, which stays."""
    if depth > _DEEPEST or not text.strip():
        return text
    closed = text.endswith((".", "!", "?", "…"))
    if known := _sentences(text, language, depth) if closed else _written(text, language, depth, with_comma=True):
        return known
    listed = ""
    for comma, other in _LISTS.items():
        parts = text.split(comma)
        written = [_value(part, language, depth) for part in parts] if len(parts) > 1 else parts
        if written != parts:
            listed = other.join(written)
            if all(not old or new != old for old, new in zip(parts, written, strict=True)):
                return listed
            break
    if not closed and (known := _written(text, language, depth)):
        return known
    if listed:
        return listed
    if (count := re.fullmatch(r"(\d+) (.+)", text)) and (counted := _written(count[2], language, depth)):
        return f"{counted} {count[1]}"
    return text


@contextmanager
def spoken(language: str) -> Iterator[None]:
    """What is said within is in this language."""
    token = _language.set(language)
    try:
        yield
    finally:
        _language.reset(token)


def language_of(chosen: str, headers: Any) -> str:
    """The language of a page: the one that was chosen ("auto": none), or the first that its browser asks for."""
    if chosen in LANGUAGES:
        return chosen
    first = headers.get("accept-language", "").strip().lower()
    return next((language for language in LANGUAGES if first.startswith(language)), "en")


class PageLanguage:
    """ASGI middleware: the page's requests are answered in its language, refusals too, wherever they were made.

    chosen_by: asks the store, which may be busy: in a thread.
    """

    def __init__(self, app: ASGIApp, chosen_by: Callable[[HTTPConnection], str]) -> None:
        self._app = app
        self._chosen_by = chosen_by

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope)
        asks = scope["type"] == "http" and path.startswith(("/chats", "/gradio_api", "/login"))
        if not asks or path.startswith("/chats/static/"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        language = language_of(await run_in_threadpool(self._chosen_by, connection), connection.headers)
        scope[SCOPE_KEY] = language
        start: Message | None = None
        body = bytearray()

        async def translated(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                start = message
            elif start is None:
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    whole = _refusal(bytes(body), language)
                    headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
                    await send({**start, "headers": [*headers, (b"content-length", str(len(whole)).encode())]})
                    await send({"type": "http.response.body", "body": whole})

        with spoken(language):
            await self._app(scope, receive, send if language == "en" else translated)


def _refusal(body: bytes, language: str) -> bytes:
    """The JSON of a refusal with its message in `language`; anything else as it is."""
    try:
        answer = json.loads(body)
        answer["error"]["message"] = in_language(answer["error"]["message"], language)
    except (ValueError, TypeError, KeyError, AttributeError):
        return body
    return json.dumps(answer, ensure_ascii=False).encode()
