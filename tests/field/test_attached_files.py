"""Text files in messages: what the model reads, what the page shows, and that they stay wherever the message goes."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.chats import files
from modules.chats.files import MOST_CHARACTERS, MOST_FILES, TextFile, attached, joined, split
from modules.chats.incoming import read_file
from modules.chats.transfer import FORMATS, export_chat, export_file, import_chats
from modules.errors import ContextTooLong, UserError
from modules.generation.types import GenerationRequest, Message, RenderedPrompt
from tests.api.page.test_chats import Page
from tests.fakes import EchoModel, loaded_in
from tests.in_process import make_app

NOTES = {"name": "notes.md", "text": "# Tide\r\n\r\n```js\r\nlow()\r\n```\r\n## User\r\n"}
TABLE = {"name": "数据 表.csv", "text": "a,b\n1,2"}
NOTES_BLOCK = "File: notes.md\n````md\n# Tide\n\n```js\nlow()\n```\n## User\n````"
TABLE_BLOCK = "File: 数据 表.csv\n```csv\na,b\n1,2\n```"
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FENCES = st.sampled_from(["```", "````\n\n", "File: x\n", "\n", "a", "~~~", "```py\n", " ", "中"])
TEXTS = st.lists(FENCES, min_size=1, max_size=8).map("".join).filter(str.strip)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    app = make_app(tmp_path_factory.mktemp("files"), EchoModel(lambda request: "Read."))
    yield Page(app)
    app.close()


def asked(page: Page) -> str:
    """The last message that the model was shown."""
    model: Any = loaded_in(page.app.manager)
    last = model.requests[-1].prompt[-1]
    assert isinstance(last, Message)
    return last.content


def test_the_examples_are_true():
    assert doctest.testmod(files).failed == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(NAMES, TEXTS), max_size=3), st.sampled_from(["", "So?", "```\nFile: a\n```", "A line\n\nand another"])
)
def test_no_text_gets_out_of_its_fence(given_files: list[tuple[str, str]], words: str):
    made = [attached(name, text) for name, text in given_files]
    found, said = split(joined(made, words))
    assert said == words
    assert [(file.name, file.text.removesuffix("\n")) for file in found] == [
        (file.name, file.text.removesuffix("\n")) for file in made
    ]


@pytest.mark.parametrize(
    "content",
    ["File: a", "File: a\n```\nx", "File: a\n```\nx\n``` and more", "File: \n```\nx\n```", "See File: a\n```\nx\n```"],
)
def test_what_only_looks_like_a_file_is_what_was_said(content: str):
    assert split(content) == ([], content)


def test_the_model_reads_files_before_the_words_and_the_page_shows_them_apart(page: Page):
    chat = page.say("Which is lower?", files=[NOTES, TABLE])["chat"]
    first, reply = page.finished(chat)["messages"]
    assert asked(page) == f"{NOTES_BLOCK}\n\n{TABLE_BLOCK}\n\nWhich is lower?"
    assert first["text"] == "Which is lower?" and first["files"] == [["notes.md", 32], ["数据 表.csv", 8]]
    source = page.ok("GET", f"/messages/{first['id']}")
    assert source["content"] == "Which is lower?" and source["files"][1] == {"name": "数据 表.csv", "text": "a,b\n1,2\n"}
    assert page.ok("GET", "")[0]["title"] == "Which is lower?"
    assert page.ok("GET", f"/{chat}/map")["messages"][0]["words"] == "Which is lower?"
    assert chat in [row["id"] for row in page.ok("GET", "?search=low()")]
    assert reply["blocks"]


def test_a_file_can_be_sent_without_a_word(page: Page):
    chat = page.say("", files=[TABLE])["chat"]
    first = page.finished(chat)["messages"][0]
    assert asked(page) == TABLE_BLOCK and first["text"] == ""
    assert page.ok("GET", "")[0]["title"] == "数据 表.csv"


def test_files_stay_when_the_message_is_edited_answered_again_and_branched(page: Page):
    chat = page.say("Sum?", files=[TABLE])["chat"]
    first, reply = page.finished(chat)["messages"]
    page.ok("POST", f"/messages/{reply['id']}/regenerate")
    page.finished(chat)
    assert asked(page) == f"{TABLE_BLOCK}\n\nSum?"
    page.ok("POST", f"/messages/{first['id']}/edit", {"content": "Product?"})
    edited, answer = page.finished(chat)["messages"]
    assert asked(page) == f"{TABLE_BLOCK}\n\nProduct?"
    assert edited["text"] == "Product?" and edited["files"] == [["数据 表.csv", 8]] and len(edited["versions"]) == 2
    page.ok("POST", f"/messages/{edited['id']}/edit", {"content": "Quotient?", "answer": False})
    assert page.view(chat)["messages"][0]["files"] == [["数据 表.csv", 8]]
    copy = page.ok("POST", f"/messages/{answer['id']}/branch")["id"]
    assert page.view(copy)["messages"][0]["files"] == [["数据 表.csv", 8]]


@pytest.mark.parametrize("form", FORMATS)
def test_files_leave_and_come_back_in_every_form(page: Page, form: str):
    chat = page.say("Which?", files=[NOTES, TABLE])["chat"]
    page.finished(chat)
    app = page.app
    _, text = export_file(export_chat(app.store.for_owner("local"), chat), form)
    (back,) = import_chats(app.store.for_owner("local"), read_file(text.encode()).chats)
    first = page.view(back.id)["messages"][0]
    assert first["text"] == "Which?" and first["files"] == [["notes.md", 32], ["数据 表.csv", 8]]
    assert app.store.for_owner("local").chats.get(back.id).title == "Which?"


def test_drafts_columns_and_messages_without_an_answer_have_them_too(page: Page):
    draft = {"content": "Sum?", "files": [TABLE]}
    assert (
        page.ok("POST", "/context", draft)["tokens"]
        == page.ok("POST", "/context", {"content": f"{TABLE_BLOCK}\n\nSum?"})["tokens"]
    )
    assert [text for kind, text in page.ok("POST", "/prompt", draft)["pieces"] if kind == "user"] == [f"{TABLE_BLOCK}\n\nSum?"]
    added = page.ok("POST", "/add", {**draft, "role": "user"})
    assert page.view(added["chat"])["messages"][0]["files"] == [["数据 表.csv", 8]]
    page.finished(page.ok("POST", "/compare", {**draft, "columns": [{}, {}]})["chat"])
    assert asked(page) == f"{TABLE_BLOCK}\n\nSum?"


def test_what_is_too_long_for_the_model_is_told_before_it_is_sent(page: Page, monkeypatch: pytest.MonkeyPatch):
    model: Any = loaded_in(page.app.manager)
    shown = model.render

    def render(request: GenerationRequest) -> RenderedPrompt:
        length = sum(len(part.content) for part in request.prompt if isinstance(part, Message))
        if length >= model.context_length:
            raise ContextTooLong(f"The prompt has {length} tokens.", tokens=length)
        return shown(request)

    chats = page.ok("GET", "")
    monkeypatch.setattr(model, "render", render)
    draft = {"content": "Sum?", "files": [{"name": "long.txt", "text": "x" * 9000}]}
    told = page.ok("POST", "/context", draft)
    assert told["over"] and told["tokens"] > 9000 and told["context"] == 4096
    assert not page.ok("POST", "/context", {"content": "Sum?"})["over"]
    status, sentence = page.refused("POST", "/send", draft)
    assert status == 400 and "tokens" in sentence and page.ok("GET", "") == chats


@pytest.mark.parametrize(
    ("given_files", "sentence"),
    [
        ([{"name": "a.txt", "text": " \n"}], "a.txt is empty"),
        ([{"name": "a.bin", "text": "a\0b"}], "a.bin is no text file"),
        ([{"name": "a.txt", "text": "a" * (MOST_CHARACTERS + 1)}], "1,000,000 are the most"),
        ([{"name": "a.txt", "text": "a"}] * (MOST_FILES + 1), "16 files"),
        ([{"name": "a.txt", "text": "\ud800"}], "half of a surrogate pair"),
    ],
)
def test_what_is_no_text_is_refused_in_one_sentence(page: Page, given_files: list[dict[str, str]], sentence: str):
    chats = page.ok("GET", "")
    answer = page.http.post(
        "/chats/send", content=json.dumps({"content": "x", "files": given_files}), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400 and sentence in answer.json()["error"]["message"]
    assert page.ok("GET", "") == chats


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a\nb.txt", "a b.txt"),
        ("", "text"),
        ("\u202egnp.exe", "gnp.exe"),
        ("x" * 300 + ".md", "x" * 200),
        ("../../etc/passwd", "../../etc/passwd"),
        ("`a`.md", "`a`.md"),
    ],
)
def test_any_name_stays_on_its_line(name: str, kept: str):
    file = attached(name, "x\n")
    assert file.name == kept
    assert split(joined([file], "So?")) == ([TextFile(kept, "x\n")], "So?")


def test_too_many_characters_are_counted_over_all_files():
    with pytest.raises(UserError, match="1,200,000 characters"):
        joined([TextFile("a", "x" * 600_000)] * 2, "")
