"""The pages that are no chat: what is written on them is kept, and only their owner changes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modules.chats.notebook import Sheet, Sheets
from modules.chats.store import ChatStore
from modules.errors import Conflict, NotFound, Unavailable, UserError
from modules.generation.model_manager import Engine
from modules.generation.sampling import SamplingParams
from tests.fakes import EchoModel

SAMPLING = SamplingParams(seed=1)


class Desk:
    def __init__(self, path: Path, model: EchoModel | None) -> None:
        self.store = ChatStore(path)
        self.engine = Engine()
        self.model = model
        if model is not None:
            self.engine.replace(model.name, lambda report: model)
        self.sheets = Sheets(self.store, self.engine)

    def typed(self, name: str, **texts: str) -> Sheet:
        return self.sheets.change("ann", name, self.sheets.read("ann", name).revision, **texts)

    def written(self, name: str, how: str = "generate") -> Sheet:
        self.sheets.write("ann", name, SAMPLING, how=how)  # type: ignore[arg-type]
        return self.over(name)

    def over(self, name: str) -> Sheet:
        deadline = time.monotonic() + 30
        while (sheet := self.sheets.read("ann", name)).state == "streaming":
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return sheet

    def close(self) -> None:
        self.sheets.close()
        self.engine.close()
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
    assert at.sheets.read("ann", "default").figures.tokens == 5


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
    undone = at.sheets.undo("ann", name)
    assert (undone.text, undone.steps) == (first, 0)
    with pytest.raises(UserError, match="no reply"):
        at.sheets.undo("ann", name)


def test_a_stale_page_overwrites_nothing(desk: Callable[..., Desk]):
    at = desk()
    old = at.sheets.read("ann", "notebook").revision
    at.typed("notebook", text="new")
    with pytest.raises(Conflict):
        at.sheets.change("ann", "notebook", old, text="older")
    assert at.sheets.read("ann", "notebook").text == "new"


def test_stop_ends_only_ones_own_and_keeps_what_there_is(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "word " * 500, pace=0.002))
    for owner in ("ann", "bob"):
        at.sheets.change(owner, "notebook", 0, text="x")
        at.sheets.write(owner, "notebook", SAMPLING, how="generate")
    with pytest.raises(Conflict, match="still being written"):
        at.sheets.write("ann", "notebook", SAMPLING, how="generate")
    while len(at.sheets.read("ann", "notebook").text) < 20:
        time.sleep(0.005)
    assert at.sheets.stop(("ann", "notebook"))
    stopped = at.sheets.read("ann", "notebook")
    assert (stopped.state, stopped.figures.ending) == ("cut", "stopped") and stopped.text.startswith("xword word")
    assert at.sheets.read("bob", "notebook").state == "streaming"


def test_the_prompt_may_be_edited_while_the_reply_is_written(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "word " * 40, pace=0.002))
    at.typed("default", prompt="a")
    at.sheets.write("ann", "default", SAMPLING, how="generate")
    at.typed("default", prompt="b")
    with pytest.raises(Conflict):
        at.typed("default", text="mine")
    over = at.over("default")
    assert (over.prompt, over.text) == ("b", "word " * 40)


def test_what_a_killed_server_had_written_is_there_and_marked(desk: Callable[..., Desk]):
    at = desk(EchoModel(lambda request: "word " * 5000, pace=0.002))
    at.typed("notebook", text="x")
    at.sheets.write("ann", "notebook", SAMPLING, how="generate")
    deadline = time.monotonic() + 30
    while at.store.preference("ann", "sheet.notebook")["text"] == "x":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    after = Sheets(ChatStore(":memory:"), at.engine)
    after._store.set_preference("ann", "sheet.notebook", at.store.preference("ann", "sheet.notebook"))
    found = after.read("ann", "notebook")
    assert (found.state, found.figures.ending) == ("cut", "killed") and "word" in found.text
    after._store.close()


def test_nothing_changes_where_the_model_refuses(desk: Callable[..., Desk]):
    at = desk()
    at.typed("notebook", text="x")
    before = at.sheets.read("ann", "notebook")
    with pytest.raises(Unavailable):
        at.sheets.write("ann", "notebook", SAMPLING, how="generate")
    assert at.sheets.read("ann", "notebook") == before
    with pytest.raises(UserError, match="empty"):
        at.sheets.write("ann", "default", SAMPLING, how="generate")
    with pytest.raises(NotFound):
        at.sheets.read("ann", "../secret")
