"""Events pass from the thread that makes them to any reader, and closing stops the work."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from modules.generation.stream import EventStream
from modules.generation.types import TextDelta


def words(*texts: str) -> EventStream:
    stream = EventStream()
    for text in texts:
        stream.put(TextDelta(text))
    return stream


def test_events_arrive_in_order_and_end():
    stream = words("a", "b")
    stream.end()
    assert [event.text for event in stream if isinstance(event, TextDelta)] == ["a", "b"]


def test_a_failure_comes_after_the_events_before_it():
    stream = words("a")
    stream.fail(ValueError("broken"))
    assert stream.get() == TextDelta("a")
    with pytest.raises(ValueError, match="broken"):
        stream.get()


def test_closing_from_another_thread_frees_a_waiting_reader():
    stream = EventStream()
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    time.sleep(0.02)
    stream.close()
    reader.join(timeout=2)
    assert not reader.is_alive()
    assert seen == []
    assert stream.closed


def test_a_timeout_is_not_the_end():
    stream = EventStream()
    with pytest.raises(TimeoutError):
        stream.get(timeout=0.01)
    stream.put(TextDelta("late"))
    assert stream.get() == TextDelta("late")


@pytest.mark.parametrize("finish", ["close", "end", "fail"])
def test_callbacks_run_once_however_it_ends(finish):
    stream = EventStream()
    calls = []
    stream.on_close(lambda: calls.append(1))
    getattr(stream, finish)(*([ValueError()] if finish == "fail" else []))
    stream.close()
    stream.end()
    assert calls == [1]
    stream.on_close(lambda: calls.append(2))
    assert calls == [1, 2]


def test_an_event_loop_reads_what_threads_write():
    async def read(stream: EventStream) -> list[str]:
        return [event.text async for event in stream if isinstance(event, TextDelta)]

    def write(stream: EventStream) -> None:
        for number in range(200):
            stream.put(TextDelta(str(number)))
            if number % 50 == 0:
                time.sleep(0.005)
        stream.end()

    async def both() -> list[list[str]]:
        streams = [EventStream() for _ in range(20)]
        for stream in streams:
            threading.Thread(target=write, args=(stream,)).start()
        return await asyncio.gather(*(read(stream) for stream in streams))

    assert asyncio.run(both()) == [[str(number) for number in range(200)]] * 20


def test_nothing_is_kept_for_a_reader_who_left():
    stream = words("a")
    stream.close()
    stream.put(TextDelta("b"))
    assert list(stream) == []


def test_a_slow_reader_keeps_what_was_made_before_the_end():
    stream = words("a", "b")
    stream.end()
    stream.close()
    assert list(stream) == [TextDelta("a"), TextDelta("b")]
