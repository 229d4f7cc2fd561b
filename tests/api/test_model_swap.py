"""Models are replaced under 200 concurrent requests: each reply, its name, its template and its tokenizer are of one model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from modules.app import App
from modules.chats.replies import prompt_hash
from modules.errors import Unavailable
from modules.generation.types import GenerationRequest
from modules.services.workspace import Workspace
from tests.api.conftest import wait_until
from tests.fakes import EchoModel

REQUESTS = 200
SETTINGS: dict[str, object] = {"mode": "chat-instruct", "character": "Tea"}
CHARACTER = """
name: Tea
context: Tea is a cup.
character_book:
  token_budget: 30
  entries:
    - {keys: [], content: the cup is full of tea, constant: true}
"""


class OwnModel(EchoModel):
    """A model that shows in each reply what its request was built with: {template of}|{tokenizer of}.

    The name stands in its template, and how many tokens it counts for a letter decides whether the lore of CHARACTER fits.
    while_counting: called once by each thread that builds a request, in the middle of it.
    """

    def __init__(self, name: str, tokens_per_letter: int) -> None:
        super().__init__(self._shown, name=name, chat_template=f"of {name}: {{{{ messages[0].content }}}}")
        self.tokens_per_letter = tokens_per_letter
        self.while_counting: Callable[[], None] = lambda: None
        self._counted = threading.local()

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        if not hasattr(self._counted, "once"):
            self._counted.once = True
            self.while_counting()
        return [token for token in super().tokenize(text) for _ in range(self.tokens_per_letter)]

    def _shown(self, request: GenerationRequest) -> str:
        template = next(name for name in ("one", "other") if f"of {name}:" in (request.template or ""))
        return f"{template}|{'one' if 'full of tea' in str(request.prompt) else 'other'}"


def models() -> tuple[OwnModel, OwnModel]:
    return OwnModel("one", 1), OwnModel("other", 10)


@pytest.fixture
def server(serve):
    server = serve(models()[0])
    server.app.characters.folder.mkdir(exist_ok=True)
    (server.app.characters.folder / "Tea.yaml").write_text(CHARACTER, encoding="utf-8")
    return server


def say_on_the_page(app: App) -> int:
    return Workspace(app, "local").chats.begin("hello", SETTINGS).id


def check_page_reply(app: App, id_: int, by: Sequence[OwnModel]) -> str:
    """The name of the one model that the whole of a reply of the page belongs to."""
    assert wait_until(lambda: app.store.for_owner("local").messages.get(id_).state == "whole", 60)
    reply = app.store.for_owner("local").messages.get(id_)
    (model,) = (model for model in by if model.name == reply.model)
    assert (reply.content, reply.extra["runs"][-1]["model"]) == (f"{model.name}|{model.name}", model.name)
    assert reply.figures.prompt_hash == prompt_hash(model, model.requests[0])
    return model.name


@pytest.mark.parametrize("stop_running", [False, True])
def test_a_replacement_in_the_middle_of_200_requests(server, stop_running: bool):
    app, (one, other) = server.app, models()
    app.manager.replace("one", lambda report: one)
    all_are_building, go_on = threading.Barrier(REQUESTS + 1, timeout=120), threading.Event()

    def pause() -> None:
        all_are_building.wait()
        assert go_on.wait(120)

    one.while_counting = pause
    with ThreadPoolExecutor(REQUESTS) as users:
        replies = [users.submit(say_on_the_page, app) for _ in range(REQUESTS)]
        all_are_building.wait()
        replaced = threading.Thread(
            target=lambda: app.manager.replace("other", lambda report: other, stop_running=stop_running)
        )
        replaced.start()
        assert wait_until((lambda: app.manager.loaded is other) if stop_running else (lambda: app.manager.loaded is None), 60)
        one.while_counting = lambda: None
        go_on.set()
    replaced.join(60)
    if stop_running:
        assert all(isinstance(reply.exception(), Unavailable) for reply in replies)
        assert one.requests == [] and app.store.for_owner("local").chats.page() == []
    else:
        assert {check_page_reply(app, reply.result(), (one, other)) for reply in replies} == {"one"}
    assert one.closed and other.requests == []


def test_replacements_while_200_requests_come_and_go(server):
    app, both = server.app, models()
    turn = threading.Semaphore(0)
    finished: list[object] = []

    def count(stream: object) -> None:
        finished.append(stream)
        if len(finished) % 10 == 0:
            turn.release()

    def swap() -> None:
        for model in both * (REQUESTS // 20):
            assert turn.acquire(timeout=120)
            app.manager.replace(model.name, lambda report, model=model: model)

    def until_taken(ask: Callable[[], int | None]) -> int:
        while True:
            try:
                if (taken := ask()) is not None:
                    return taken
            except Unavailable:
                time.sleep(0.001)

    spoken: list[httpx.Response] = []

    def ask_the_api() -> int | None:
        body = {"messages": [{"role": "user", "content": "hello"}], **SETTINGS}
        reply = server.post("/v1/chat/completions", body)
        if reply.status_code == 503:
            return None
        spoken.append(reply)
        return 0

    app.manager.replace("other", lambda report: both[1])
    app.manager.on_finished.append(count)
    swapping = threading.Thread(target=swap)
    swapping.start()
    with ThreadPoolExecutor(16) as users:
        replies = [users.submit(until_taken, lambda: say_on_the_page(app)) for _ in range(REQUESTS // 2)]
        spoken_to = [users.submit(until_taken, ask_the_api) for _ in range(REQUESTS // 2)]
    assert [one.result() for one in spoken_to] == [0] * (REQUESTS // 2)
    swapping.join(60)
    names = {check_page_reply(app, reply.result(), both) for reply in replies}
    for reply in spoken:
        told = reply.raise_for_status().json()
        assert told["choices"][0]["message"]["content"] == f"{told['model']}|{told['model']}"
        names.add(told["model"])
    assert names == {"one", "other"} and len(finished) == REQUESTS
