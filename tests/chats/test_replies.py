"""A reply goes on whoever watches, is kept as it grows, and ends when its owner says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from modules.chats import replies as replies_module
from modules.chats.conversation import fixed_seed
from modules.chats.records import StoredMessage
from modules.chats.replies import Replies
from modules.chats.store import ChatStore
from modules.errors import ContextTooLong, Unavailable, UserError
from modules.generation.model_manager import ModelManager
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, LoadedModel, Message
from tests.fakes import EchoModel


class Desk:
    """A store, a manager with a model, and the replies between them."""

    def __init__(self, model: LoadedModel | None) -> None:
        self.store = ChatStore(":memory:")
        self.manager = ModelManager()
        if model is not None:
            self.manager.replace(model.name, lambda report: model)
        self.jobs = Replies(self.store)
        self.replies = self.jobs.for_owner("ann")
        self.chat = self.store.for_owner("ann").chats.create()

    def ask(self, text: str = "question", **sampling: object) -> StoredMessage:
        """Say something, and the reply that is begun."""
        question = self.store.for_owner("ann").messages.add(self.chat.id, None, "user", text)
        request = GenerationRequest((Message("user", text),), fixed_seed(SamplingParams.read(sampling)), overflow="drop_oldest")
        return self.begin(request, lambda: self.streaming(question.id))

    def begin(self, request: GenerationRequest, make: Callable[[], StoredMessage]) -> StoredMessage:
        with self.manager.lease() as model:
            return self.replies.begin(model, request, make, preset="simple-1")

    def streaming(self, parent: int) -> StoredMessage:
        return self.store.for_owner("ann").messages.add(self.chat.id, parent, "assistant", "", state="streaming")

    def kept(self, message_id: int) -> StoredMessage:
        return self.store.for_owner("ann").messages.get(message_id)

    def close(self) -> None:
        self.jobs.close()
        self.manager.close()
        self.store.close()


@pytest.fixture
def desk() -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(model: LoadedModel | None = None) -> Desk:
        desks.append(Desk(model))
        return desks[-1]

    yield make
    for made in desks:
        made.close()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_a_reply_is_kept_with_its_figures_and_what_made_it(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "The answer.", pace=0.001))
    reply = at.ask(temperature=0.5, seed=7)
    until(lambda: at.kept(reply.id).state == "whole")
    kept = at.kept(reply.id)
    assert (kept.content, kept.model) == ("The answer.", "echo")
    assert kept.sampling["temperature"] == 0.5
    figures = kept.figures
    assert (figures.tokens, figures.ending, figures.preset, figures.seed, figures.cached_tokens) == (
        11,
        "stop",
        "simple-1",
        7,
        1,
    )
    assert figures.tokens_per_second and figures.first_token is not None and figures.context_length == 4096


def test_a_seed_is_drawn_and_kept_so_that_the_reply_can_be_made_again(desk: Callable[..., Desk]):
    model = EchoModel()
    at = desk(model)
    seeds = set()
    for _ in range(3):
        reply = at.ask()
        until(lambda: at.kept(reply.id).state == "whole")  # noqa: B023
        seeds.add(at.kept(reply.id).figures.seed)
    assert len(seeds) == 3 and seeds == {request.sampling.seed for request in model.requests}


def test_stopping_keeps_what_was_written_and_ends_the_work(desk: Callable[..., Desk]):
    model = EchoModel(lambda request: "x" * 10_000, pace=0.002)
    at = desk(model)
    reply = at.ask(max_tokens=100_000)
    until(lambda: (running := at.replies.get(reply.id)) and len(running.progress.text) > 5)
    others = at.jobs.for_owner("bob")
    assert others.get(reply.id) is None and not others.stop(reply.id)
    begun = time.monotonic()
    assert at.replies.stop(reply.id)
    assert time.monotonic() - begun < 3
    kept = at.kept(reply.id)
    assert (kept.state, kept.figures.ending) == ("cut", "stopped")
    assert len(kept.content) > 5 and model.streams[0].closed
    assert at.replies.get(reply.id) is None
    assert not at.replies.stop(reply.id)


def test_stopping_one_reply_leaves_the_others_alone(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "y" * 300, pace=0.002))
    first, second = at.ask(), at.ask()
    at.replies.stop(first.id)
    until(lambda: at.kept(second.id).state == "whole")
    assert at.kept(second.id).content == "y" * 300


def test_a_reply_is_written_down_while_it_grows(desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replies_module, "SAVE_SECONDS", 0.05)
    at = desk(EchoModel(lambda request: "z" * 1000, pace=0.002))
    reply = at.ask(max_tokens=2000)
    until(lambda: 0 < len(at.kept(reply.id).content) < 1000)
    assert at.kept(reply.id).state == "streaming"
    at.replies.stop(reply.id)


def test_a_slow_reply_is_written_down_although_nothing_new_comes(desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replies_module, "SAVE_SECONDS", 0.05)
    at = desk(EchoModel(lambda request: "ab", pace=1.5))
    reply = at.ask()
    until(lambda: at.kept(reply.id).content)
    assert (at.kept(reply.id).content, at.kept(reply.id).state) == ("a", "streaming")
    at.replies.stop(reply.id)


def test_a_failure_of_the_model_is_said_and_the_text_before_it_is_kept(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "abcdef", fails_after=3, failure=UserError("Out of memory: shorten the chat.")))
    reply = at.ask()
    until(lambda: at.kept(reply.id).state == "cut")
    kept = at.kept(reply.id)
    assert (kept.content, kept.figures.ending, kept.figures.error) == ("abc", "failed", "Out of memory: shorten the chat.")


def test_a_bug_in_the_model_is_said_too(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "abcdef", fails_after=2, failure=ZeroDivisionError("no luck")))
    reply = at.ask()
    until(lambda: at.kept(reply.id).state == "cut")
    assert "no luck" in (at.kept(reply.id).figures.error or "")


def test_nothing_is_written_where_the_model_refuses_or_is_not_there(desk: Callable[..., Desk]):
    def never() -> StoredMessage:
        raise AssertionError("a message was made")

    at = desk(EchoModel(context_length=4))
    with pytest.raises(ContextTooLong):
        at.begin(GenerationRequest("much too long"), never)
    with pytest.raises(Unavailable):
        desk().begin(GenerationRequest("hello"), never)


def test_closing_ends_and_keeps_every_reply(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "w" * 10_000, pace=0.002))
    replies = [at.ask(max_tokens=100_000) for _ in range(5)]
    until(lambda: all((running := at.replies.get(reply.id)) and running.progress.text for reply in replies))
    at.jobs.close()
    assert {at.kept(reply.id).state for reply in replies} == {"cut"}
    assert all(at.kept(reply.id).content for reply in replies)
