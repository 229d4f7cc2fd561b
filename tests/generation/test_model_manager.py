"""One model at a time, many requests, and a replacement that loses nobody's reply."""

from __future__ import annotations

import threading
import time

import pytest

from modules.errors import Unavailable, UserError
from modules.generation.model_manager import ModelManager
from modules.generation.types import Finished, GenerationRequest, TextDelta
from tests.api.conftest import wait_until
from tests.fakes import EchoModel, loaded_in, stream_of


@pytest.fixture
def manager():
    manager = ModelManager()
    yield manager
    manager.close()


def text_of(stream) -> str:
    return "".join(event.text for event in stream if isinstance(event, TextDelta))


def test_without_a_model_the_error_says_what_to_do(manager):
    with pytest.raises(Unavailable, match="--model"):
        stream_of(manager, GenerationRequest("hi"))


def test_a_request_ends_with_exactly_one_finished(manager):
    manager.replace("echo", lambda report: EchoModel())
    events = list(stream_of(manager, GenerationRequest("hello")))
    assert text_of(events) == "hello"
    assert [isinstance(event, Finished) for event in events].index(True) == len(events) - 1


def test_replacing_waits_for_running_replies(manager):
    first = EchoModel(lambda request: "x" * 20, name="first", pace=0.005)
    manager.replace("first", lambda report: first)
    stream = stream_of(manager, GenerationRequest("go"))
    replaced = threading.Thread(target=lambda: manager.replace("second", lambda report: EchoModel(name="second")))
    replaced.start()
    assert text_of(stream) == "x" * 20
    replaced.join(timeout=5)
    assert first.closed
    assert loaded_in(manager).name == "second"


def test_replacing_can_stop_running_replies(manager):
    manager.replace("slow", lambda report: EchoModel(lambda request: "x" * 10_000, pace=0.01))
    stream = stream_of(manager, GenerationRequest("go"))
    stream.get()
    begun = time.monotonic()
    manager.replace("next", lambda report: EchoModel(), stop_running=True)
    assert time.monotonic() - begun < 2
    assert stream.closed


@pytest.mark.parametrize("failure", [UserError("No loader fits."), RuntimeError("out of luck")])
def test_a_failed_load_is_remembered_and_told_to_the_next_request(manager, failure):
    def load(report):
        raise failure

    with pytest.raises(UserError):
        manager.replace("broken", load)
    assert str(failure) in (manager.status.error or "")
    with pytest.raises(Unavailable, match=str(failure)):
        stream_of(manager, GenerationRequest("hi"))


def test_progress_is_seen_while_loading(manager):
    reached, go_on = threading.Event(), threading.Event()

    def load(report):
        report("shard 1 of 2")
        reached.set()
        go_on.wait(5)
        return EchoModel()

    loading = threading.Thread(target=manager.replace, args=("big", load))
    loading.start()
    reached.wait(5)
    assert (manager.status.state, manager.status.name, manager.status.progress) == ("loading", "big", "shard 1 of 2")
    with pytest.raises(Unavailable, match="still being loaded"):
        stream_of(manager, GenerationRequest("hi"))
    go_on.set()
    loading.join(timeout=5)
    assert manager.status.state == "ready"


def test_a_replacement_waits_for_leases_whose_requests_still_run_on_their_model(manager):
    first = EchoModel(name="first")
    manager.replace("first", lambda report: first)
    with manager.lease() as model:
        replaced = threading.Thread(target=lambda: manager.replace("second", lambda report: EchoModel(name="second")))
        replaced.start()
        assert wait_until(lambda: manager.status.state == "loading")
        with pytest.raises(Unavailable, match="second is still being loaded"):
            manager.lease()
        assert model.name == "first" and not first.closed
        stream = model.stream(GenerationRequest("hello"))
    assert text_of(stream) == "hello"
    replaced.join(timeout=5)
    assert first.closed and [request.prompt for request in first.requests] == ["hello"]
    assert loaded_in(manager).name == "second" and loaded_in(manager).requests == []


def test_a_replacement_that_stops_replies_revokes_leases(manager):
    first, go_on = EchoModel(name="first"), threading.Event()

    def load(report):
        go_on.wait(5)
        return EchoModel(name="second")

    manager.replace("first", lambda report: first)
    with manager.lease() as model:
        replaced = threading.Thread(target=lambda: manager.replace("second", load, stop_running=True))
        replaced.start()
        assert wait_until(lambda: first.closed)  # nobody waits for this lease
        with pytest.raises(Unavailable, match="second is still being loaded"):
            model.stream(GenerationRequest("hello"))
        go_on.set()
        replaced.join(timeout=5)
        with pytest.raises(Unavailable, match="first was replaced by another model"):
            model.stream(GenerationRequest("hello"))
    assert first.requests == [] and loaded_in(manager).requests == []


def test_a_leased_model_is_not_unloaded_as_idle(manager):
    manager.replace("echo", lambda report: EchoModel())
    with manager.lease():
        assert not manager.unload_idle(lambda report: EchoModel())
    assert manager.unload_idle(lambda report: EchoModel())
    with pytest.raises(Unavailable, match="not loaded now"):
        manager.lease()
    with manager.lease(wait=True) as model:
        assert model.name == "echo"


def test_a_lease_that_is_over_begins_nothing(manager):
    manager.replace("echo", lambda report: EchoModel())
    with manager.lease() as model:
        pass
    with pytest.raises(RuntimeError):
        model.stream(GenerationRequest("hello"))
    assert loaded_in(manager).requests == []


def test_closing_a_stream_gives_the_turn_back(manager):
    manager.replace("slow", lambda report: EchoModel(lambda request: "x" * 10_000, pace=0.01))
    with stream_of(manager, GenerationRequest("go")) as stream:
        stream.get()
    begun = time.monotonic()
    manager.unload()
    assert time.monotonic() - begun < 2
