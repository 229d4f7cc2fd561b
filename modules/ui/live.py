"""A reply on its way to browsers: what is new since a position, in as few bytes as can be."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from modules.chats.replies import Progress, Reply
from modules.chats.token_data import Places
from modules.ui.markdown import Block, LiveMarkdown
from modules.ui.token_view import token_row

PERIOD = 0.04
"""Seconds between two events: 25 a second look fluent, and cost a third of what each token would."""
FIGURES_PERIOD = 0.5
HEARTBEAT = 15.0
EVENT_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Rendering:
    """The blocks of one reply, made once for all who watch."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self._lock = threading.Lock()
        self.watchers = 0
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

    def refresh(self) -> None:
        """Bring `progress` and `blocks` up to date."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        if self.reply.version == self._version:
            return
        progress = self.reply.progress
        if progress.text != self.progress.text or not self.blocks:
            self.blocks = self._markdown.update(progress.text) if progress.text else []
        self.progress, self._version = progress, progress.version


def difference(old: Sequence[Block], new: Sequence[Block]) -> dict[str, Any] | None:
    """How `new` comes from `old`, None where they are the same.

    {"k": keep, "a": text}: the last block's HTML is its first `keep` UTF-16 units and `text`.
    {"at": start, "b": blocks}: blocks from that start on are replaced by these.
    """
    same = 0
    for before, after in zip(old, new, strict=False):
        if before is not after and before != after:
            break
        same += 1
    if same == len(old) == len(new):
        return None
    if same == len(old) - 1 == len(new) - 1 and (old[-1].start, old[-1].kind) == (new[-1].start, new[-1].kind):
        keep = _common(old[-1].html, new[-1].html)
        kept = new[-1].html[:keep]
        return {"k": len(kept.encode("utf-16-le")) // 2, "a": new[-1].html[keep:]}
    starts = [block.start for block in (*old[same:], *new[same:])]
    return {"at": min(starts), "b": [[block.start, block.kind, block.html] for block in new[same:]]}


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
    said: dict[str, Any] = {}
    figures_due = 0.0
    heard = time.monotonic()
    while True:
        began = time.monotonic()
        await asyncio.to_thread(rendering.refresh)
        progress, blocks = rendering.progress, rendering.blocks if streaming else []
        if sent is None:
            first = next((index for index, block in enumerate(blocks) if block.start == position), 0)
            sent = blocks[:first]
            if not blocks or first == 0:
                yield "retry:500\n" + frame({"at": 0, "b": []})
        if change := difference(sent, blocks):
            yield frame(change, blocks[-1].start if blocks and "b" in change else None)
            sent, heard = list(blocks), began
        if tokens and streaming and (rows := rendering.token_rows(placed)):
            yield frame({"tokens": rows, "from": placed, "at": rendering.tokens_at})
            placed, heard = placed + len(rows), began
        status = _status(progress)
        if progress.phase == "over":
            message = await asyncio.to_thread(final)
            if message.get("blocks") == [[block.start, block.kind, block.html] for block in blocks]:
                del message["blocks"]  # the browser has them all
            yield frame(message, event="over")
            return
        if status != said and (began >= figures_due or status.get("phase") != said.get("phase")):
            yield frame(status)
            said, figures_due, heard = status, began + FIGURES_PERIOD, began
        if began - heard > HEARTBEAT:
            yield ":\n\n"
            heard = began
        spent = time.monotonic() - began
        await asyncio.sleep(max(PERIOD - spent, spent / 2, 0.005))


async def follow_text(
    reply: Reply, position: int, final: Callable[[], dict[str, Any]], *, streaming: bool = True
) -> AsyncIterator[str]:
    """The same for a browser that shows the plain text and has its first `position` characters.

    Each piece comes as {"t": text}, with the position behind it as its id.
    """
    said: dict[str, Any] = {}
    figures_due, heard = 0.0, time.monotonic()
    yield "retry:500\n\n"
    while True:
        began = time.monotonic()
        progress = reply.progress
        over = progress.phase == "over"
        if (streaming or over) and len(progress.text) > position:
            yield frame({"t": progress.text[position:]}, len(progress.text))
            position, heard = len(progress.text), began
        if over:
            yield frame(await asyncio.to_thread(final), event="over")
            return
        status = _status(progress)
        if status != said and (began >= figures_due or status.get("phase") != said.get("phase")):
            yield frame(status)
            said, figures_due, heard = status, began + FIGURES_PERIOD, began
        if began - heard > HEARTBEAT:
            yield ":\n\n"
            heard = began
        await asyncio.sleep(PERIOD)


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
    }
