"""Reply threads: replies of an engine in another process, each read on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

from modules.errors import UserError
from modules.generation.admission import Gate
from modules.generation.stream import EventStream
from modules.generation.types import GenerationEvent, TextDelta

log = logging.getLogger(__name__)


def start_when_admitted(gate: Gate, events: EventStream, tokens: int, work: Callable[[], None], *, name: str) -> None:
    """Queue for `tokens` of the engine's cache; once `gate` admits, `work` runs on a thread of that name."""
    gate.enter(events, tokens, lambda: threading.Thread(target=work, daemon=True, name=name).start())


def forward_reply(
    reply: Iterator[GenerationEvent],
    events: EventStream,
    *,
    model: str,
    tokens_per_second: float = 0.0,
    explain: Callable[[UserError], UserError] = lambda error: error,
    was_cut_off: Callable[[], bool] = lambda: False,
) -> None:
    """Put a reply into its stream, no faster than `tokens_per_second` (0: as fast as it comes), and end or fail the stream.

    explain: a better sentence for a UserError that `reply` raises. was_cut_off: whether a failure is what was to be expected,
    for the reply was cut off, so that nothing is logged.
    """
    closed = threading.Event()
    events.on_close(closed.set)
    pause = 1 / tokens_per_second if tokens_per_second else 0.0
    try:
        for event in reply:
            events.put(event)
            if pause and isinstance(event, TextDelta):
                closed.wait(pause * event.tokens)
        events.end()
    except UserError as error:
        events.fail(explain(error))
    except Exception as error:
        if not was_cut_off():
            log.exception("a reply of %s failed", model)
        events.fail(error)
