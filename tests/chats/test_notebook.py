"""The pages that are no chat: what is written on them is kept, and only their owner changes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modules.chats.notebook import Notebook, NotebookPage, Notebooks
from modules.chats.store import ChatStore
from modules.errors import Conflict, NotFound, Unavailable, UserError
from modules.generation.model_manager import ModelManager
from modules.generation.sampling import SamplingParams
from tests.fakes import EchoModel

SAMPLING = SamplingParams(seed=1)


class Desk:
    def __init__(self, path: Path, model: EchoModel | None) -> None:
        self.store = ChatStore(path)
        self.manager = ModelManager()
        self.model = model
        if model is not None:
            self.manager.replace(model.name, lambda report: model)
        self.notebooks = Notebooks(self.store, self.manager)
        self.pages = self.of("ann")

    def of(self, owner: str) -> Notebook:
        return self.notebooks.for_owner(owner)

    def typed(self, name: str, **texts: str) -> NotebookPage:
        return self.pages.change(name, self.pages.read(name).revision, **texts)

    def written(self, name: str, how: str = "generate") -> NotebookPage:
        self.pages.write(name, SAMPLING, how=how)  # type: ignore[arg-type]
        return self.over(name)

    def over(self, name: str) -> NotebookPage:
        deadline = time.monotonic() + 30
        while (page := self.pages.read(name)).state == "streaming":
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return page

    def close(self) -> None:
        self.notebooks.close()
        self.manager.close()
        self.store.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(model: EchoModel | None = None) -> Desk:
        desks.append(Desk(tmp_path / "chats.sqlite3", model))
        return desks[-1]

    yield make
    for made in desks:
        made.close()


def test_a_reply_stands_beside_the_prompt_and_goes_on_from_both(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: " more"))
    at.typed("default", prompt="Once")
    assert at.written("default").text == " more"
    assert at.written("default", "continue").text == " more more"
    assert at.model is not None
    assert [request.prompt for request in at.model.requests] == ["Once", "Once more"]
    assert at.pages.read("default").figures.tokens == 5


def test_the_free_page_is_continued_at_its_end(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: " more"))
    at.typed("notebook", text="Once")
    assert at.written("notebook").text == "Once more"
    assert at.written("notebook").text == "Once more more"


@pytest.mark.parametrize(("name", "first", "again"), [("default", "", "two"), ("notebook", "page ", "page two")])
def test_undo_takes_the_last_reply_back_and_regenerate_writes_it_again(
    desk: Callable[..., Desk], name: str, first: str, again: str
):
    at = desk(EchoModel(lambda request: "one"))
    at.typed(name, **({"prompt": "x"} if name == "default" else {"text": first}))
    at.written(name)
    at.written(name, "continue")
    assert at.model is not None
    at.model.reply = lambda request: "two"
    assert at.written(name, "regenerate").text == again
    undone = at.pages.undo(name)
    assert (undone.text, undone.steps) == (first, 0)
    with pytest.raises(UserError, match="no reply"):
        at.pages.undo(name)


def test_a_stale_page_overwrites_nothing(desk: Callable[..., Desk]):
    at = desk()
    old = at.pages.read("notebook").revision
    at.typed("notebook", text="new")
    with pytest.raises(Conflict):
        at.pages.change("notebook", old, text="older")
    assert at.pages.read("notebook").text == "new"


def test_stop_ends_only_ones_own_and_keeps_what_there_is(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "word " * 500, pace=0.002))
    for owner in ("ann", "bob"):
        at.of(owner).change("notebook", 0, text="x")
        at.of(owner).write("notebook", SAMPLING, how="generate")
    with pytest.raises(Conflict, match="still being written"):
        at.pages.write("notebook", SAMPLING, how="generate")
    while len(at.pages.read("notebook").text) < 20:
        time.sleep(0.005)
    assert at.pages.stop("notebook")
    stopped = at.pages.read("notebook")
    assert (stopped.state, stopped.figures.ending) == ("cut", "stopped") and stopped.text.startswith("xword word")
    assert at.of("bob").read("notebook").state == "streaming"


def test_the_prompt_may_be_edited_while_the_reply_is_written(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "word " * 40, pace=0.002))
    at.typed("default", prompt="a")
    at.pages.write("default", SAMPLING, how="generate")
    at.typed("default", prompt="b")
    with pytest.raises(Conflict):
        at.typed("default", text="mine")
    over = at.over("default")
    assert (over.prompt, over.text) == ("b", "word " * 40)


def test_what_a_killed_server_had_written_is_there_and_marked(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "word " * 5000, pace=0.002))
    at.typed("notebook", text="x")
    at.pages.write("notebook", SAMPLING, how="generate")
    deadline = time.monotonic() + 30
    while at.store.for_owner("ann").preferences.get("sheet.notebook")["text"] == "x":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    after = Notebooks(ChatStore(":memory:"), at.manager)
    after._store.for_owner("ann").preferences.set("sheet.notebook", at.store.for_owner("ann").preferences.get("sheet.notebook"))
    found = after.for_owner("ann").read("notebook")
    assert (found.state, found.figures.ending) == ("cut", "killed") and "word" in found.text
    after._store.close()


def test_nothing_changes_where_the_model_refuses(desk: Callable[..., Desk]):
    at = desk()
    at.typed("notebook", text="x")
    before = at.pages.read("notebook")
    with pytest.raises(Unavailable):
        at.pages.write("notebook", SAMPLING, how="generate")
    assert at.pages.read("notebook") == before
    with pytest.raises(UserError, match="empty"):
        at.pages.write("default", SAMPLING, how="generate")
    with pytest.raises(NotFound):
        at.pages.read("../secret")
