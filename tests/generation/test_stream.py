"""Events pass from the thread that makes them to any reader, and closing stops the work."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from modules.generation.stream import EventStream, put_together
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


class WokenLoop:
    """Stands for an event loop: counts how often it is woken."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.calls = 0
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return wake(*args, **kwargs)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]


async def readers_of(streams: list[EventStream]) -> list[asyncio.Task[list[Any]]]:
    """Tasks that wait for their streams already."""
    tasks = [asyncio.create_task(stream.read()) for stream in streams]
    await asyncio.sleep(0)
    return tasks


def test_a_step_wakes_the_event_loop_once_for_all_its_streams():
    async def both() -> tuple[list[list[Any]], int]:
        streams = [EventStream() for _ in range(20)]
        tasks = await readers_of(streams)
        woken = WokenLoop(asyncio.get_running_loop())

        def step() -> None:
            with put_together():
                for number, stream in enumerate(streams):
                    stream.put(TextDelta(str(number)))
                    stream.put(TextDelta("."))

        thread = threading.Thread(target=step)
        thread.start()
        found = await asyncio.gather(*tasks)
        calls = woken.calls
        thread.join()
        return found, calls

    found, calls = asyncio.run(both())
    assert found == [[TextDelta(str(number)), TextDelta(".")] for number in range(20)]
    assert calls == 1


def test_threads_that_wait_are_woken_at_the_end_of_the_step():
    streams = [EventStream() for _ in range(3)]
    found: list[Any] = [None] * 3

    def read(index: int) -> None:
        found[index] = streams[index].get(timeout=30)

    readers = [threading.Thread(target=read, args=(index,)) for index in range(3)]
    for reader in readers:
        reader.start()
    with put_together():
        for stream in streams:
            stream.put(TextDelta("a"))
    for reader in readers:
        reader.join(timeout=30)
    assert found == [TextDelta("a")] * 3


@pytest.mark.parametrize("ending", ["end", "fail", "close"])
def test_what_ends_in_a_step_is_told_with_the_rest(ending: str):
    async def both() -> Any:
        stream = EventStream()
        (task,) = await readers_of([stream])
        with put_together():
            if ending == "fail":
                stream.fail(ValueError("broken"))
            else:
                getattr(stream, ending)()
        return await task

    if ending == "fail":
        with pytest.raises(ValueError, match="broken"):
            asyncio.run(both())
    else:
        assert asyncio.run(both()) == []


def test_a_step_that_fails_still_delivers_what_was_put():
    async def both() -> Any:
        stream = EventStream()
        (task,) = await readers_of([stream])
        with pytest.raises(ValueError, match="step"), put_together():
            stream.put(TextDelta("a"))
            raise ValueError("step")
        with put_together(), put_together():
            stream.put(TextDelta("b"))
        return await task

    assert asyncio.run(both()) == [TextDelta("a"), TextDelta("b")]


def test_readers_of_a_closed_event_loop_do_not_stop_the_step():
    stream, other = EventStream(), EventStream()

    async def leave() -> None:
        await readers_of([stream])

    asyncio.run(leave())
    with put_together():
        stream.put(TextDelta("a"))
        other.put(TextDelta("b"))
    assert other.get(timeout=5) == TextDelta("b")
