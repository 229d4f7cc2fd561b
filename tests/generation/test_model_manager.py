"""One model at a time, many requests, and a replacement that loses nobody's reply."""

from __future__ import annotations

import threading
import time

import pytest

from modules.errors import Unavailable, UserError
from modules.generation.model_manager import Engine
from modules.generation.types import Finished, GenerationRequest, TextDelta
from tests.fakes import EchoModel


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.close()


def text_of(stream) -> str:
    return "".join(event.text for event in stream if isinstance(event, TextDelta))


def test_without_a_model_the_error_says_what_to_do(engine):
    with pytest.raises(Unavailable, match="--model"):
        engine.stream(GenerationRequest("hi"))


def test_a_request_ends_with_exactly_one_finished(engine):
    engine.replace("echo", lambda report: EchoModel())
    events = list(engine.stream(GenerationRequest("hello")))
    assert text_of(events) == "hello"
    assert [isinstance(event, Finished) for event in events].index(True) == len(events) - 1


def test_replacing_waits_for_running_replies(engine):
    first = EchoModel(lambda request: "x" * 20, name="first", pace=0.005)
    engine.replace("first", lambda report: first)
    stream = engine.stream(GenerationRequest("go"))
    replaced = threading.Thread(target=lambda: engine.replace("second", lambda report: EchoModel(name="second")))
    replaced.start()
    assert text_of(stream) == "x" * 20
    replaced.join(timeout=5)
    assert first.closed
    assert engine.model.name == "second"


def test_replacing_can_stop_running_replies(engine):
    engine.replace("slow", lambda report: EchoModel(lambda request: "x" * 10_000, pace=0.01))
    stream = engine.stream(GenerationRequest("go"))
    stream.get()
    begun = time.monotonic()
    engine.replace("next", lambda report: EchoModel(), stop_running=True)
    assert time.monotonic() - begun < 2
    assert stream.closed


@pytest.mark.parametrize("failure", [UserError("No loader fits."), RuntimeError("out of luck")])
def test_a_failed_load_is_remembered_and_told_to_the_next_request(engine, failure):
    def load(report):
        raise failure

    with pytest.raises(UserError):
        engine.replace("broken", load)
    assert str(failure) in (engine.status.error or "")
    with pytest.raises(Unavailable, match=str(failure)):
        engine.stream(GenerationRequest("hi"))


def test_progress_is_seen_while_loading(engine):
    reached, go_on = threading.Event(), threading.Event()

    def load(report):
        report("shard 1 of 2")
        reached.set()
        go_on.wait(5)
        return EchoModel()

    loading = threading.Thread(target=engine.replace, args=("big", load))
    loading.start()
    reached.wait(5)
    assert (engine.status.state, engine.status.name, engine.status.progress) == ("loading", "big", "shard 1 of 2")
    with pytest.raises(Unavailable, match="still being loaded"):
        engine.stream(GenerationRequest("hi"))
    go_on.set()
    loading.join(timeout=5)
    assert engine.status.state == "ready"


def test_closing_a_stream_gives_the_turn_back(engine):
    engine.replace("slow", lambda report: EchoModel(lambda request: "x" * 10_000, pace=0.01))
    with engine.stream(GenerationRequest("go")) as stream:
        stream.get()
    begun = time.monotonic()
    engine.unload()
    assert time.monotonic() - begun < 2
