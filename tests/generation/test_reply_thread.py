"""What replies of engines in other processes have in common: their pace, their end, and what is said where they fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial

import pytest

from modules.errors import Unavailable, UserError
from modules.generation.admission import Gate
from modules.generation.reply_thread import forward_reply, start_when_admitted
from modules.generation.stream import EventStream
from modules.generation.types import GenerationEvent, TextDelta


def broken(error: Exception) -> Iterator[GenerationEvent]:
    yield TextDelta("so far")
    raise error


def test_events_are_passed_on_and_the_stream_ends() -> None:
    events = EventStream()
    forward_reply(iter([TextDelta("a"), TextDelta("b")]), events, model="tiny")
    assert list(events) == [TextDelta("a"), TextDelta("b")]


def test_a_reader_that_leaves_does_not_wait_for_the_pace() -> None:
    events = EventStream()

    def reply() -> Iterator[GenerationEvent]:
        events.close()
        yield TextDelta("a", tokens=1_000_000)

    forward_reply(reply(), events, model="tiny", tokens_per_second=0.001)
    assert events.closed


def test_a_sentence_for_people_is_explained_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    events = EventStream()
    forward_reply(broken(UserError("no")), events, model="tiny", explain=lambda error: Unavailable(f"gone: {error}"))
    assert events.get() == TextDelta("so far")
    with pytest.raises(Unavailable, match="gone: no"):
        events.get()
    assert not caplog.records


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_mistake_is_logged_unless_the_reply_was_cut_off(caplog: pytest.LogCaptureFixture, cut_off: bool) -> None:
    events = EventStream()
    forward_reply(broken(OSError("reset")), events, model="tiny", was_cut_off=lambda: cut_off)
    assert isinstance(events.error, OSError)
    assert [record.message for record in caplog.records] == ([] if cut_off else ["a reply of tiny failed"])


def test_work_begins_on_a_thread_of_its_own_once_there_is_room() -> None:
    gate = Gate(1, 10)
    first, second = Future[str](), Future[str]()
    for name, begun in (("first", first), ("second", second)):
        work = partial(lambda future: future.set_result(threading.current_thread().name), begun)
        start_when_admitted(gate, EventStream(), 5, work, name=name)
    assert first.result(30) == "first" and gate.waiting == 1 and not second.done()
    gate.leave(5)
    assert second.result(30) == "second"
