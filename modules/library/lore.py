"""Lore: what the book of a character tells the model, always or while its keys are spoken of. What enters, where, and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from modules.library.decorators import Decorators, read_decorators
from modules.library.lore_keys import SECONDS, pattern_in, word_in

Role = Literal["system", "user", "assistant"]
Place = Literal["before", "after"] | int
"""Before or after the description of the character, or before the message so many from the end of the chat; 0 is after all."""
SCAN_DEPTH = 4
"""How many of the last messages are looked through where a book does not say."""
_DEEPEST_RECURSION = 8


@dataclass(frozen=True)
class LoreEntry:
    """One text of a book, as in the specifications of character cards V2 and V3.

    content: what the model is told; decorators (@@name value) may stand before it. keys: any one of them in the last messages
    lets it in. selective: a secondary key is needed too. constant: always in. order: small ones are told first. priority: large
    ones stay longest where the book is over its budget; None takes the order. position: before_char or after_char. others: what
    else the card says of it, kept for its export.
    """

    content: str
    keys: tuple[str, ...] = ()
    secondary_keys: tuple[str, ...] = ()
    selective: bool = False
    constant: bool = False
    enabled: bool = True
    case_sensitive: bool = False
    use_regex: bool = False
    order: float = 0
    priority: float | None = None
    position: Literal["before_char", "after_char"] = "after_char"
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is called by people."""
        named = next(
            (text for key in ("name", "comment") if isinstance(text := self.others.get(key), str) and text.strip()), ""
        )
        return named.strip() or ", ".join(self.keys[:3]) or self.content.strip()[:40]

    def extension(self, name: str) -> Any:
        """What other programs keep with it, by name; None where they do not."""
        extensions = self.others.get("extensions")
        return extensions.get(name) if isinstance(extensions, dict) else None


@dataclass(frozen=True)
class LoreBook:
    """scan_depth: messages that are looked through, None for the usual; token_budget: tokens of all that enters, None for no limit.

    recursive: what has entered is looked through for keys too.
    """

    entries: tuple[LoreEntry, ...]
    scan_depth: int | None = None
    token_budget: int | None = None
    recursive: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entered:
    """An entry in a prompt. key: the word that let it in, empty where it is always in; text: as the model is told it."""

    title: str
    key: str
    text: str
    place: Place
    role: Role = "system"


def entered(
    book: LoreBook,
    said: Sequence[str],
    replies: int,
    fill: Callable[[str], str],
    count: Callable[[str], int],
) -> list[Entered]:
    """What enters when `said` are the messages so far, oldest first, in the order in which it is told.

    replies: how many messages are the character's; fill: puts the names into a text; count: the tokens of a text.
    """
    until = time.monotonic() + SECONDS
    waiting = [_Candidate(entry, read_decorators(entry.content), fill, until) for entry in book.entries if entry.enabled]
    waiting = [one for one in waiting if one.text and not one.marks.never and one.may_enter(replies)]
    depth = SCAN_DEPTH if book.scan_depth is None else book.scan_depth
    came: list[_Candidate] = []
    for one in waiting:
        one.key = one.let_in_by(_last(said, one.scan_depth(depth)))
        if one.key is not None:
            came.append(one)
    if book.recursive:
        _let_in_by_each_other(waiting, came)
    came.sort(key=lambda one: one.entry.order)
    return [one.entered() for one in _within(came, book.token_budget, count)]


class _Candidate:
    """An entry with what its decorators say. key: what let it in, None while nothing has."""

    def __init__(self, entry: LoreEntry, marks: Decorators, fill: Callable[[str], str], until: float) -> None:
        self.entry, self.marks, self._until = entry, marks, until
        self.text = fill(marks.text).strip()
        self.key: str | None = None
        self._keys = [fill(key) for key in entry.keys]
        self._fill = fill

    def may_enter(self, replies: int) -> bool:
        after, every = self.marks.only_after, self.marks.only_every
        return (after is None or replies >= after) and (every is None or replies % every == 0)

    def scan_depth(self, usual: int) -> int:
        own = self.entry.extension("scan_depth")
        if self.marks.scan_depth is not None:
            return self.marks.scan_depth
        return own if isinstance(own, int) and not isinstance(own, bool) and own >= 0 else usual

    def let_in_by(self, text: str) -> str | None:
        """The key in `text` that lets the entry in, empty for one that is always in; None where it stays out."""
        entry, marks = self.entry, self.marks
        if marks.always or (entry.constant and not entry.use_regex):
            return ""
        key = self._found(self._keys, text)
        if key is None or not self._selected(text):
            return None
        if marks.additional_keys and self._found(marks.additional_keys, text) is None:
            return None
        return None if not entry.use_regex and self._found(marks.exclude_keys, text) is not None else key

    def _selected(self, text: str) -> bool:
        entry = self.entry
        if not entry.selective or not entry.secondary_keys or entry.use_regex:
            return True
        found = [self._found([self._fill(key)], text) is not None for key in entry.secondary_keys]
        match entry.extension("selectiveLogic"):
            case 1:
                return not all(found)
            case 2:
                return not any(found)
            case 3:
                return all(found)
            case _:
                return any(found)

    def _found(self, keys: Sequence[str], text: str) -> str | None:
        entry = self.entry
        if entry.use_regex:
            return pattern_in(text, keys, self._until, case_sensitive=entry.case_sensitive)
        whole_words = entry.extension("match_whole_words") is True
        return word_in(text, keys, case_sensitive=entry.case_sensitive, whole_words=whole_words)

    def entered(self) -> Entered:
        entry, marks = self.entry, self.marks
        usual: Place = "before" if entry.position == "before_char" else "after"
        place = marks.place if marks.place is not None else _depth_of(entry, usual)
        role = (marks.role or _role_of(entry)) if isinstance(place, int) else "system"
        return Entered(entry.title, self.key or "", self.text, place, role)


def _depth_of(entry: LoreEntry, usual: Place) -> Place:
    """SillyTavern keeps the depth of an entry beside its position, which is 4 then."""
    depth = entry.extension("depth")
    if entry.extension("position") == 4 and isinstance(depth, int) and not isinstance(depth, bool):
        return max(0, depth)
    return usual


def _role_of(entry: LoreEntry) -> Role:
    """SillyTavern numbers the roles."""
    match entry.extension("role"):
        case 1:
            return "user"
        case 2:
            return "assistant"
        case _:
            return "system"


def _last(said: Sequence[str], depth: int) -> str:
    return "\n".join(said[max(0, len(said) - depth) :])


def _let_in_by_each_other(waiting: Sequence[_Candidate], came: list[_Candidate]) -> None:
    new = list(came)
    for _ in range(_DEEPEST_RECURSION):
        text = "\n".join(one.text for one in new)
        new = []
        for one in waiting:
            if one.key is None and (key := one.let_in_by(text)) is not None:
                one.key = key
                new.append(one)
        if not new:
            return
        came += new


def _within(came: Sequence[_Candidate], budget: int | None, count: Callable[[str], int]) -> Sequence[_Candidate]:
    """Those that the budget holds: the lowest priority goes first, and of equals the last."""
    if budget is None:
        return came

    def weight(one: _Candidate) -> float:
        return one.entry.order if one.entry.priority is None else one.entry.priority

    left, kept = budget, set[int]()
    tokens = [count(one.text) for one in came]
    over = sum(tokens) - left
    for at in sorted(range(len(came)), key=lambda at: (weight(came[at]), -at)):
        if over > 0:
            over -= tokens[at]
        else:
            kept.add(at)
    return [one for at, one in enumerate(came) if at in kept]
