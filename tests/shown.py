"""What a browser shows of a reply on its way, computed as static/blocks.js does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules.api.page.markdown import Block, LiveMarkdown
from modules.api.page.reply_stream import difference


def after(shown: Sequence[Block], change: Any) -> list[Block]:
    """The blocks that a browser with `shown` has after `change`, which `modules.api.page.reply_stream.difference` describes."""
    blocks = list(shown)
    change = {"last": change} if isinstance(change, list) else change
    if "last" in change:
        keep, text, *ending = change["last"]
        last = blocks.pop()
        units = last.html.encode("utf-16-le")
        kept, end = units[: 2 * keep], units[len(units) - 2 * sum(ending) :]
        blocks.append(Block(last.start, last.kind, kept.decode("utf-16-le") + text + end.decode("utf-16-le")))
    blocks = [block for block in blocks if "at" not in change or block.start < change["at"]]
    return blocks + [Block(*block) for block in change.get("b", ())]


def streamed(text: str, step: int) -> list[Block]:
    """The blocks that a browser has at the end of a text that came in pieces, and had at each of them as the server did."""
    live, shown = LiveMarkdown(), []
    for end in [*range(step, len(text), step), len(text)]:
        blocks = list(live.update(text[:end]))
        if change := difference(shown, blocks):
            shown = after(shown, change)
        assert shown == blocks
    return shown
