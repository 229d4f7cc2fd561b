"""A reply on its way to browsers: what is new since a position, in as few bytes as can be."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from starlette.responses import StreamingResponse

from modules.api.page.markdown import Block, LiveMarkdown
from modules.chats.replies import Progress, Reply
from modules.chats.token_data import Places
from modules.i18n.sentences import said
from modules.services.tokens import token_row

PERIOD = 1 / 30
"""Seconds between two events: two frames of a screen, so that each event is drawn two frames after the last one."""
FIGURES_PERIOD = 0.5
HEARTBEAT = 15.0
Key = TypeVar("Key", bound=Hashable)


def event_response(events: AsyncIterator[str]) -> StreamingResponse:
    """Server-sent events as an answer."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def over(final: dict[str, Any]) -> str:
    """The event that ends a stream: there is nothing more to follow."""
    return frame(final, event="over")


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


def frame(data: Any, position: int | None = None, event: str | None = None) -> str:
    """One server-sent event."""
    head = (f"event:{event}\n" if event else "") + (f"id:{position}\n" if position is not None else "")
    return f"{head}data:{json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def follow(
    rendering: Rendering,
    position: int,
    final: Callable[[], dict[str, Any]],
    *,
    tokens: bool = False,
    streaming: bool = True,
) -> AsyncIterator[str]:
    """Server-sent events of a reply for a browser that has the blocks before `position`, to its end.

    final: the message as it is stored, once the reply is over; sent as the last event, named "over".
    tokens: send {"tokens": rows, "from": n} too, as far as they are placed in the text.
    streaming: off shows how far the reply is, and its text at the end.
    """
    placed = 0
    sent: list[Block] | None = None

    async def look() -> tuple[Progress, list[str]]:
        nonlocal placed, sent
        await rendering.refresh()
        progress, blocks, pieces = rendering.progress, rendering.blocks if streaming else [], []
        if sent is None:
            first = next((index for index, block in enumerate(blocks) if block.start == position), 0)
            sent = blocks[:first]
            if first == 0:
                pieces.append(frame({"at": 0, "b": []}))
        if change := difference(sent, blocks):
            pieces.append(frame(change, blocks[-1].start if blocks and isinstance(change, dict) else None))
            sent = list(blocks)
        if tokens and streaming and (rows := rendering.token_rows(placed)):
            pieces.append(frame({"tokens": rows, "from": placed, "at": rendering.tokens_at}))
            placed += len(rows)
        return progress, pieces

    def last() -> dict[str, Any]:
        message = final()
        if message.get("blocks") == [[block.start, block.kind, block.html] for block in sent or ()]:
            del message["blocks"]  # the browser has them all
        return message

    async for piece in _told(look, last):
        yield piece


async def follow_text(
    reply: Reply, position: int, final: Callable[[], dict[str, Any]], *, streaming: bool = True
) -> AsyncIterator[str]:
    """The same for a browser that shows the plain text and has its first `position` characters.

    Each piece comes as {"t": text}, with the position behind it as its id.
    """

    async def look() -> tuple[Progress, list[str]]:
        nonlocal position
        progress = reply.progress
        if not (streaming or progress.phase == "over") or len(progress.text) <= position:
            return progress, []
        begun, position = position, len(progress.text)
        return progress, [frame({"t": progress.text[begun:]}, position)]

    async for piece in _told(look, final):
        yield piece


async def _told(
    look: Callable[[], Awaitable[tuple[Progress, list[str]]]], last: Callable[[], dict[str, Any]]
) -> AsyncIterator[str]:
    """All events of a reply to its end: the pieces that `look` finds, how far it is, and signs of life where nothing else is said."""
    said: dict[str, Any] = {}
    due = figures_due = heard = time.monotonic()
    yield "retry:500\n\n"
    while True:
        began = time.monotonic()
        progress, pieces = await look()
        if progress.phase == "over":
            pieces.append(over(await asyncio.to_thread(last)))
        elif (status := _status(progress)) != said and (began >= figures_due or status["phase"] != said.get("phase")):
            pieces.append(frame(status))
            said, figures_due = status, began + FIGURES_PERIOD
        elif not pieces and began - heard > HEARTBEAT:
            pieces.append(":\n\n")
        if pieces:
            yield "".join(pieces)
            heard = began
        if progress.phase == "over":
            return
        now = time.monotonic()
        due = max(due + PERIOD, now + (now - began) / 2)  # to the beat, and never more than two thirds of the time
        await asyncio.sleep(due - now)


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
