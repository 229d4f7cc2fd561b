"""Events of a running reply for browsers: what is new since a position, in as few bytes as can be."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

from modules.api.page.markdown import Block, LiveMarkdown
from modules.chats.replies import Progress, Reply
from modules.chats.token_data import Places
from modules.i18n.sentences import said
from modules.services.tokens import token_row

PERIOD = 1 / 30
"""Seconds between two events: two frames of a screen, so that each event is drawn two frames after the last one."""
FIGURES_PERIOD = 0.5
Key = TypeVar("Key", bound=Hashable)


class News(NamedTuple):
    """One event of a topic. position: where a reader goes on who has it; "" leaves that as it was."""

    data: Any
    position: str = ""


class Rendering:
    """The blocks of one reply, made once for all who watch."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.watchers = 0
        self._lock = threading.Lock()
        self._markdown = LiveMarkdown()
        self._version = -1
        self.progress = reply.progress
        self.blocks: list[Block] = []
        self._places = Places(reply.at)

    @property
    def tokens_at(self) -> int:
        """Where in the text the tokens of this run begin."""
        return self.reply.at

    def token_rows(self, first: int) -> list[list[Any]]:
        """The tokens from number `first` on that are placed in the text, as the token view has them."""
        with self._lock:
            tokens, text, places = self.reply.tokens, self.progress.text, self._places
            places.feed(tokens[len(places.ends) :], text, last=False)
            ends = [self.tokens_at, *places.ends]
            return [token_row(tokens[at], text[ends[at] : ends[at + 1]]) for at in range(first, len(places.ends))]

    async def refresh(self) -> None:
        """Bring `progress` and `blocks` up to date."""
        if self.reply.version != self._version:
            await asyncio.to_thread(self._refresh)

    def _refresh(self) -> None:
        with self._lock:
            if self.reply.version == self._version:
                return
            progress = self.reply.progress
            if progress.text != self.progress.text or not self.blocks:
                self.blocks = self._markdown.update(progress.text, progress.figures.opened) if progress.text else []
            self.progress, self._version = progress, progress.version


class Renderings(Generic[Key]):
    """The renderings that somebody watches, by the keys of their replies."""

    def __init__(self) -> None:
        self._watched: dict[Key, Rendering] = {}

    @contextmanager
    def watched(self, key: Key, reply: Reply) -> Iterator[Rendering]:
        """The rendering of `reply`, shared with all who are inside this block. For the event loop's thread."""
        rendering = self._watched.get(key)
        if rendering is None or rendering.reply is not reply:
            rendering = self._watched[key] = Rendering(reply)
        rendering.watchers += 1
        try:
            yield rendering
        finally:
            rendering.watchers -= 1
            if not rendering.watchers and self._watched.get(key) is rendering:
                del self._watched[key]


def difference(old: Sequence[Block], new: Sequence[Block]) -> list[Any] | dict[str, Any] | None:
    """How `new` comes from `old`, None where they are the same.

    [keep, text, ending]: the last block's HTML is its first `keep` UTF-16 units, `text`, and its last `ending` units (left
    out: none). {"last": the same, "b": blocks that come after it}. {"at": start, "b": blocks}: from that start on, and no others.
    """
    same = 0
    for before, after in zip(old, new, strict=False):
        if before is not after and before != after:
            break
        same += 1
    if same == len(old) == len(new):
        return None
    first, rest = new[same : same + 1], new[same:]
    if first and same == len(old) - 1 and (old[-1].start, old[-1].kind) == (first[0].start, first[0].kind):
        growth, rest = _growth(old[-1].html, first[0].html), rest[1:]
        if not rest:
            return growth
        change: dict[str, Any] = {"last": growth}
    else:
        change = {"at": min(block.start for block in (*old[same:], *rest))}
    return change | {"b": [[block.start, block.kind, block.html] for block in rest]}


def _growth(old: str, new: str) -> list[Any]:
    keep = _common(old, new)
    ending = _common(old[keep:][::-1], new[keep:][::-1])
    if ending <= len(",10"):
        return [_units(new[:keep]), new[keep:]]
    return [_units(new[:keep]), new[keep : len(new) - ending], _units(new[len(new) - ending :])]


def _units(text: str) -> int:
    """How long the browser finds `text`, in UTF-16 units."""
    return len(text.encode("utf-16-le")) // 2


def _common(old: str, new: str) -> int:
    """Length of the common beginning, by halving."""
    return bisect_left(range(1, min(len(old), len(new)) + 1), True, key=lambda size: old[:size] != new[:size])


async def follow(
    rendering: Rendering,
    position: int,
    final: Callable[[], dict[str, Any]],
    *,
    tokens: bool = False,
    streaming: bool = True,
) -> AsyncIterator[News]:
    """Events of a reply for a browser that has the blocks before `position`, to its end.

    final: the message as it is stored, once the reply is over; the last event is {"over": message}.
    tokens: send {"tokens": rows, "from": n} too, as far as they are placed in the text.
    streaming: off shows how far the reply is, and its text at the end.
    """
    placed = 0
    sent: list[Block] | None = None

    async def look() -> tuple[Progress, list[News]]:
        nonlocal placed, sent
        await rendering.refresh()
        progress, blocks, news = rendering.progress, rendering.blocks if streaming else [], []
        if sent is None:
            first = next((index for index, block in enumerate(blocks) if block.start == position), 0)
            sent = blocks[:first]
            if first == 0:
                news.append(News({"at": 0, "b": []}))
        if change := difference(sent, blocks):
            news.append(News(change, str(blocks[-1].start) if blocks and isinstance(change, dict) else ""))
            sent = list(blocks)
        if tokens and streaming and (rows := rendering.token_rows(placed)):
            news.append(News({"tokens": rows, "from": placed, "at": rendering.tokens_at}))
            placed += len(rows)
        return progress, news

    def last() -> dict[str, Any]:
        message = final()
        if message.get("blocks") == [[block.start, block.kind, block.html] for block in sent or ()]:
            del message["blocks"]  # the browser has them all
        return message

    async for news in _with_status(rendering.reply, look, last):
        yield news


async def follow_text(
    reply: Reply, position: int, final: Callable[[], dict[str, Any]], *, streaming: bool = True
) -> AsyncIterator[News]:
    """The same for a browser that shows the plain text and has its first `position` characters.

    Each piece comes as {"t": text}, with the position behind it.
    """

    async def look() -> tuple[Progress, list[News]]:
        nonlocal position
        progress = reply.progress
        if not (streaming or progress.phase == "over") or len(progress.text) <= position:
            return progress, []
        begun, position = position, len(progress.text)
        return progress, [News({"t": progress.text[begun:]}, str(position))]

    async for news in _with_status(reply, look, final):
        yield news


async def _with_status(
    reply: Reply, look: Callable[[], Awaitable[tuple[Progress, list[News]]]], last: Callable[[], dict[str, Any]]
) -> AsyncIterator[News]:
    """All events of a reply to its end: what `look` finds at each beat, and how far the reply is, twice a second."""
    sent: dict[str, Any] = {}
    due = figures_due = time.monotonic()
    while True:
        began = time.monotonic()
        progress, news = await look()
        status = _status(progress)
        if progress.phase == "over":
            news.append(News({"over": await asyncio.to_thread(last)}))
        elif status != sent and (began >= figures_due or status["phase"] != sent.get("phase")):
            news.append(News(status))
            sent, figures_due = status, began + FIGURES_PERIOD
        for one in news:
            yield one
        if progress.phase == "over":
            return
        now = time.monotonic()
        due = max(due + PERIOD, now + (now - began) / 2)  # to the beat, and never more than two thirds of the time
        await asyncio.sleep(due - now)
        await _newer(reply, progress.version, None if status == sent else figures_due - time.monotonic())


async def _newer(reply: Reply, version: int, patience: float | None) -> None:
    """Wait until the reply is newer than `version`, or for `patience` seconds."""
    if reply.version != version:
        return
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(changed.set)

    reply.on_change(version, wake)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(changed.wait(), patience)


def _status(progress: Progress) -> dict[str, Any]:
    if progress.phase == "waiting":
        return {"phase": "waiting", "place": progress.place}
    if progress.phase == "reading":
        return {"phase": "reading", "read": progress.read, "prompt": progress.prompt}
    return {
        "phase": progress.phase,
        "n": progress.figures.tokens,
        "s": round(progress.figures.tokens_per_second or 0, 1),
        "p": progress.figures.prompt_tokens,
        **({"unsaved": said(progress.unsaved)} if progress.unsaved else {}),
    }
