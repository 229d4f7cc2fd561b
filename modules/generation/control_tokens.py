"""Control tokens that people spell: what they write is read as text, and only what a chat template writes controls the model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from modules.errors import UserError
from modules.generation.reasoning import opening_of, segments
from modules.generation.template import Arguments, as_template_call, render_chat
from modules.generation.types import Message, Messages

MARK = "\ufdd0"
"""No character, by Unicode's own rule: stands in a control token that a person spelled, while a template is rendered."""
_ESCAPED = "\\ufdd0"
"""What becomes of it where a template writes a value out as Python or JSON does. Where people type it, it gets a mark too."""

_UNUSUAL = re.compile(r"[^\w\s.,:;!?'\"()&/-]")
"""What names seldom have, and control tokens nearly always."""


@dataclass(frozen=True)
class Stretch:
    """Characters start to end of a rendered text: one control token of the template, or text where `token` is None."""

    start: int
    end: int
    token: int | None = None


class ControlTokens:
    """How a model's control tokens are spelled, and their ids.

    >>> control = ControlTokens({"<|end|>": 7})
    >>> control.marked("Say <|end|>!").replace(MARK, "^")
    'Say <^|end|>!'
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        # One letter has no inside for a mark; vocabularies that call single letters or spaces special mean no control by it.
        self.ids = {spelling: token for spelling, token in ids.items() if len(spelling.strip()) > 1}
        lengths: dict[str, set[int]] = defaultdict(set)
        for spelling in (*self.ids, _ESCAPED):
            lengths[spelling[0]].add(len(spelling))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, lengths)) + "]")
        self._beginnings = frozenset(spelling[:length] for spelling in self.ids for length in range(1, len(spelling)))
        self._longest_beginning = max(map(len, self._beginnings), default=0)

    def _find(self, text: str) -> Iterator[tuple[int, int]]:
        """(start, end) of what gets a mark in a text, the longest where several begin; what has one is none."""
        after = 0
        for match in self._first.finditer(text):
            start = match.start()
            if start < after:
                continue
            for length in self._lengths[text[start]]:
                spelling = text[start : start + length]
                if spelling in self.ids or spelling == _ESCAPED:
                    after = start + len(spelling)
                    yield start, after
                    break

    def marked(self, value: Any) -> Any:
        """A text, or what holds texts, with a mark in each control token; the same object where there is none. Raises UserError."""
        try:
            return self._marked(value)
        except RecursionError:
            raise UserError("A message or a tool is nested too deeply. Make it flatter.", param="messages") from None

    def _marked(self, value: Any) -> Any:
        match value:
            case str():
                return self._marked_text(value)
            case Arguments():
                return value.changed(self._marked)
            case Mapping():
                pairs = {self._marked(key): self._marked(inner) for key, inner in value.items()}
                return pairs if any(one is not other for one, other in zip(_flat(pairs), _flat(value), strict=True)) else value
            case list() | tuple():
                found = [self._marked(inner) for inner in value]
                return found if any(one is not other for one, other in zip(found, value, strict=True)) else value
            case _:
                return value

    def _marked_text(self, text: str, keep: frozenset[int] = frozenset()) -> str:
        pieces, at = [], 0
        for start, _ in self._find(text):
            if start not in keep:
                pieces += [text[at : start + 1], MARK]
                at = start + 1
        for end in sorted({len(text.rstrip()), len(text)}):  # templates trim
            if self._begins_before(text, end):
                pieces += [text[at:end], MARK]
                at = end
        return "".join([*pieces, text[at:]]) if pieces else text

    def _begins_before(self, text: str, end: int) -> bool:
        """Whether text[:end] ends within a control token, which the text after it could complete."""
        return any(text[at:end] in self._beginnings for at in range(max(0, end - self._longest_beginning), end))

    def marked_messages(self, messages: Messages) -> Messages:
        """A conversation in which no text has control tokens, save for those around what a model thought before it answered."""
        found = [self._marked_message(message) for message in messages]
        return tuple(found)

    def _marked_message(self, message: Message) -> Message:
        keep = self._around_thinking(message.content) if message.role == "assistant" else frozenset()
        content, extra = self._marked_text(message.content, keep), self._marked_extra(message.extra)
        return (
            message if content is message.content and extra is message.extra else replace(message, content=content, extra=extra)
        )

    def _around_thinking(self, text: str) -> frozenset[int]:
        """Where the marks stand that a model put around its thinking, at the head of a reply: they are in none of its segments."""
        parts = segments(text)
        gaps = zip([0, *(part.end for part in parts)], [part.start for part in parts], strict=False)
        places = [at for start, end in gaps for at in range(start, end)]
        opening = opening_of("".join(text[at] for at in places).strip())
        if opening and opening not in self.ids:  # an end alone, of what no control token begins: it may be the end of a turn
            return frozenset()
        return frozenset(places)

    def _marked_extra(self, extra: Mapping[str, Any]) -> Mapping[str, Any]:
        """Arguments of calls are read first: JSON has other spellings for a letter."""
        if not isinstance(calls := extra.get("tool_calls"), list | tuple):
            return self.marked(extra)
        read = {**extra, "tool_calls": [as_template_call(call) for call in calls]}
        found = self.marked(read)
        return extra if found is read else found

    def marked_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a request gives to the template (tools, documents, …); names of tokens such as eos_token are no one's text."""
        return {name: value if name.endswith("_token") else self.marked(value) for name, value in variables.items()}

    def stretches(self, text: str) -> list[Stretch]:
        """A rendered text, told apart: all of it, in order."""
        found, at = [], 0
        for start, end in self._find(text):
            if (token := self.ids.get(text[start:end])) is None:
                continue
            if start > at:
                found.append(Stretch(at, start))
            found.append(Stretch(start, end, token))
            at = end
        return [*found, Stretch(at, len(text))] if at < len(text) else found


def _flat(pairs: Mapping[Any, Any]) -> Iterator[Any]:
    for key, value in pairs.items():
        yield key
        yield value


def render_marked(
    control: ControlTokens,
    source: str,
    messages: Messages,
    *,
    own: Mapping[str, Any],
    given: Mapping[str, Any],
    continue_reply: bool = False,
) -> str:
    """The prompt text of a conversation, as `render_chat` makes it, with a mark in each control token that somebody spelled.

    own: variables of the model (bos_token, …); given: those of the request (tools, …). Raises UserError.
    """
    variables = {**own, **control.marked_variables(given)}
    return render_with_marks(source, control.marked_messages(messages), variables=variables, continue_reply=continue_reply)


def render_with_marks(
    source: str,
    messages: Messages,
    *,
    variables: Mapping[str, Any],
    add_generation_prompt: bool = True,
    continue_reply: bool = False,
) -> str:
    """Like `render_chat`, of texts that have marks: so has the result, also where the template escaped them; errors have none."""
    try:
        text = render_chat(
            source,
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_reply=continue_reply,
            variables=variables,
        )
    except UserError as error:
        raise UserError(without_marks(_with_marks_unescaped(error.message)), param=error.param) from None
    return _with_marks_unescaped(text)


def as_text(name: str) -> str:
    """A name for the source of a template, with marks in all that could be a control token of any model."""
    return MARK.join(name) if _UNUSUAL.search(name) else name


def _with_marks_unescaped(text: str) -> str:
    return text.replace(_ESCAPED, MARK)


def without_marks(text: str) -> str:
    """A rendered text as people see it."""
    return text.replace(MARK, "")


class ChatEncoder:
    """Tokens of rendered conversations by a tokenizer of transformers. Thread-safe."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.control = ControlTokens({str(token): number for number, token in added.items() if token.special})

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text: control tokens are those that have no mark in them."""
        if MARK not in text:
            return self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._apart(text)[0]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text in which nothing is a control token."""
        return self._apart(self.control.marked(text))[0]

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """(token ids, the characters that each stands for) of a rendered text, by a fast tokenizer."""
        if MARK not in text:
            coded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return coded["input_ids"], coded["offset_mapping"]
        tokens, offsets, places = self._apart(text)
        return tokens, [(places[start], places[end - 1] + 1 if end > start else places[start]) for start, end in offsets]

    def _apart(self, text: str) -> tuple[list[int], list[tuple[int, int]], list[int]]:
        """(tokens, their characters, and where each of these stands in `text`)."""
        letters, places = [], []
        runs: list[tuple[str, int | None]] = []
        for part in self.control.stretches(text):
            if part.token is not None:
                letters.append(MARK)
                places.append(part.start)
            kept = [at for at in range(part.start, part.end) if text[at] != MARK]
            run = "".join(text[at] for at in kept)
            letters.append(run)
            places += kept
            runs.append((run, part.token))
        if self._fast is None:
            return self._piecewise(runs), [], places
        coded = self._fast.encode("".join(letters), add_special_tokens=False)
        tokens: list[int] = []
        offsets: list[tuple[int, int]] = []
        for token, offset in zip(coded.ids, coded.offsets, strict=True):
            found = [self._control_of[token]] if token in self._control_of else self._as_text(token)
            tokens += found
            offsets += [offset] * len(found)
        return tokens, offsets, [*places, len(text)]

    @cached_property
    def _fast(self) -> Any:
        """A copy of the tokenizer to which a control token is text unless a mark stands before it; None for slow tokenizers."""
        own = getattr(self._tokenizer, "backend_tokenizer", None)
        if own is None:
            return None
        from tokenizers import AddedToken, Tokenizer

        copy: Any = Tokenizer.from_str(own.to_str())
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True
        added = {str(token): token for token in self._tokenizer.added_tokens_decoder.values()}
        copy.add_tokens(
            [
                AddedToken(
                    MARK + spelling,
                    single_word=added[spelling].single_word,
                    lstrip=added[spelling].lstrip,
                    rstrip=added[spelling].rstrip,
                    normalized=False,
                    special=False,
                )
                for spelling in self.control.ids
            ]
        )
        return copy

    @cached_property
    def _control_of(self) -> dict[int, int]:
        return {self._fast.token_to_id(MARK + spelling): token for spelling, token in self.control.ids.items()}

    @cached_property
    def _spelled(self) -> dict[int, list[int]]:
        """Control tokens that the tokenizer's model itself makes of their spelling, letter by letter (Unigram vocabularies)."""
        unknown = self._tokenizer.unk_token_id
        return {
            token: [piece.id for letter in spelling for piece in self._fast.model.tokenize(letter)]
            for spelling, token in self.control.ids.items()
            if token != unknown
        }

    def _as_text(self, token: int) -> list[int]:
        return self._spelled.get(token, [token])

    def _piecewise(self, runs: list[tuple[str, int | None]]) -> list[int]:
        tokens: list[int] = []
        for run, token in runs:
            if token is not None:
                tokens.append(token)
            elif run:
                tokens += self._tokenizer(run, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return tokens
