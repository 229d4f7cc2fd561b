"""Chats go to files and come back: of every form, import → export → import gives the same chat."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.chats.incoming import read_file
from modules.chats.portable import PortableChat, PortableMessage, chat_of
from modules.chats.records import Figures
from modules.chats.store import ChatStore
from modules.chats.transfer import FORMATS, export_chat, export_file, import_chats
from modules.errors import NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import Role

FLAT = [name for name in FORMATS if name != "textloom"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    [
        "## User",
        "\\## Assistant\n## System",
        "# title",
        "a\r\nb",
        "\n\nx\n",
        "<|im_end|>",
        '"',
        "<b>&amp;</b>",
        "图书馆",
        "{}",
        "[1]",
    ]
)
MADE = SamplingParams(temperature=0.5, stop=("\n",)).model_dump(mode="json", exclude_defaults=True)
SAID = TEXT.filter(lambda text: bool(text.strip()))
ROLES: list[Role] = ["user", "assistant"]
TURN = st.tuples(st.sampled_from(ROLES), SAID)


def png(colour: str = "red") -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(made, "PNG")
    return made.getvalue()


@st.composite
def trees(draw: st.DrawFn) -> PortableChat:
    """Any chat that the store can hold."""
    messages = []
    for at in range(draw(st.integers(0, 8))):
        reply = draw(st.booleans())
        messages.append(
            PortableMessage(
                draw(st.sampled_from(["user", "assistant", "system", "tool"])),
                draw(TEXT),
                draw(st.none() | st.integers(0, at - 1)) if at else None,
                draw(st.sampled_from(["whole", "cut"])),
                draw(st.integers(1, 10**10)) / 8,
                "a model" if reply else None,
                MADE if reply else {},
                Figures(tokens=draw(st.integers(1, 99)), seed=3, ending="stop", edited=True) if reply else Figures(),
                {"note": draw(TEXT), "list": [1, {"a": None}]} if reply else {},
                tuple(draw(st.lists(st.sampled_from([png("red"), png("blue")]), max_size=2))),
            )
        )
    return PortableChat(
        tuple(messages),
        draw(st.integers(0, len(messages) - 1)) if messages else None,
        " ".join(draw(TEXT).split()),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(1, 10**10)) / 8,
        draw(
            st.sampled_from(
                [{}, {"system_prompt": "Be brief."}, {"mode": "chat", "character": "Mira", "adapter_strength": 0.5}]
            )
        ),
    )


@st.composite
def lines(draw: st.DrawFn, form: str) -> PortableChat:
    """Any chat of one branch that a form can hold."""
    told = draw(st.none() | SAID) if form != "pairs" else None
    turns = [PortableMessage("system", told)] if told else []
    turns += [PortableMessage(role, text) for role, text in draw(st.lists(TURN, min_size=1, max_size=8))]
    if form == "pairs":
        turns = [turn for turn in turns if not turn.content.startswith("<|BEGIN")] or [PortableMessage("user", "x")]
    elif form == "openai" and draw(st.booleans()):
        turns[-1] = replace(turns[-1], pictures=(png(),))
    titled = draw(st.just("") | SAID) if form != "pairs" else ""
    return chat_of(turns, titled)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatStore]:
    store = ChatStore(tmp_path_factory.mktemp("chats") / "x.sqlite3")
    yield store
    store.close()


def through_the_store(kept: ChatStore, chat: PortableChat) -> PortableChat:
    (made,) = import_chats(kept.for_owner("ann"), [chat])
    return export_chat(kept.for_owner("ann"), made.id)


@given(chat=trees())
@settings(max_examples=60)
def test_our_own_form_keeps_the_whole_tree(kept, chat: PortableChat):
    first = through_the_store(kept, chat)
    assert first == chat
    text = export_file(first, "textloom")[1]
    (again,) = read_file(text.encode()).chats
    assert again == chat
    assert export_file(through_the_store(kept, again), "textloom")[1] == text


@pytest.mark.parametrize("form", FLAT)
@given(data=st.data())
@settings(max_examples=60)
def test_import_export_import_gives_the_same_chat(kept, form: str, data: st.DataObject):
    chat = data.draw(lines(form))
    text = export_file(through_the_store(kept, chat), form)[1]
    (read,) = read_file(text.encode()).chats
    assert read == chat
    assert export_file(through_the_store(kept, read), form)[1] == text


@pytest.mark.parametrize("form", FLAT)
@given(chat=trees())
@settings(max_examples=40)
def test_any_chat_is_written_in_any_form_and_what_was_written_stays_the_same(form: str, chat: PortableChat):
    said = [turn.content for turn in chat.branch() if turn.role in ROLES and (turn.content.strip() or turn.pictures)]
    text = export_file(chat, form)[1]
    try:
        (once,) = read_file(text.encode()).chats
    except UserError:
        assert not any(text.strip() for text in said)
        return
    (twice,) = read_file(export_file(once, form)[1].encode()).chats
    assert twice == once
    if form == "openai":
        assert [turn.content for turn in once.branch() if turn.role in ROLES] == said


def test_the_files_of_2023_are_read_and_written():
    old = {"internal": [["<|BEGIN-VISIBLE-CHAT|>", "Hi."], ["1 < 2?", "Yes."]], "visible": [["", "Hi."], ["1 &lt; 2?", "Yes."]]}
    expected = [("assistant", "Hi."), ("user", "1 < 2?"), ("assistant", "Yes.")]
    for value in (
        old,
        {**old, "metadata": {"user_0": {"timestamp": "x"}}},
        {"data": old["internal"], "data_visible": old["visible"]},
        {"internal": [], "visible": old["visible"][1:]},
    ):
        (chat,) = read_file(json.dumps(value).encode()).chats
        assert [(turn.role, turn.content) for turn in chat.branch()] == (
            expected if value.get("internal") != [] else expected[1:]
        )
    (chat,) = read_file(json.dumps(old).encode()).chats
    assert json.loads(export_file(chat, "pairs")[1]) == old


def test_sharegpt_and_openai_files_of_others_are_read():
    rows = [
        {
            "id": "1",
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Ho"},
            ],
        },
        {"id": "2", "conversations": [{"from": "user", "value": "A"}, {"from": "assistant", "value": "B"}]},
    ]
    chats = read_file(json.dumps(rows).encode()).chats
    assert [chat.title for chat in chats] == ["Hi", "A"] and chats[0].system_prompt == "Be kind."
    assert read_file("\n".join(map(json.dumps, rows)).encode()).chats == chats
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    parts = [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
    ]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    (chat,) = read_file(json.dumps(messages).encode()).chats
    assert chat.system_prompt == "Be brief."
    assert chat.branch() == [PortableMessage("user", "Look\n\n![picture](<https://x/y.png>)", pictures=(png(),))]


def test_markdown_written_by_hand_is_read():
    (chat,) = read_file(b"# A title\r\n\r\n## You\r\nHello\r\n\r\n## Model\r\nHi\r\nthere\r\n").chats
    assert chat.title == "A title" and [turn.content for turn in chat.branch()] == ["Hello", "Hi\nthere"]


DEEP = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"   ",
        b"\xff\xfe\x00",
        b"hello",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"[1]",
        b'{"messages": 3}',
        b'{"messages": [{"role": "king", "content": "x"}]}',
        b'{"messages": []}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"conversations": [{"from": "nobody", "value": "x"}]}',
        b'{"internal": [["one"]]}',
        b'{"internal": []}',
        b'{"textloom": 2, "messages": []}',
        b'{"textloom": 1, "messages": [{"role": "user", "content": "x", "parent": 0}]}',
        b'{"textloom": 1, "messages": [{"role": "user", "content": "x"}], "shown": 5}',
        b'{"textloom": 1, "messages": [{"role": "user", "content": "x", "created": 1e300}]}',
        b'{"textloom": 1, "messages": [{"role": "user", "content": "x", "figures": {"tokens_per_second": "fast"}}]}',
        b'{"textloom": 1, "messages": [], "settings": {"mode": "rude"}}',
        b'{"a": 1}\n{"b"',
        DEEP,
    ],
)
def test_a_bad_file_is_one_sentence(data: bytes):
    with pytest.raises(UserError) as refused:
        read_file(data)
    assert refused.value.message[0].isupper() and "\n" not in refused.value.message and len(refused.value.message) < 300


@pytest.mark.parametrize("picture", ["!", base64.b64encode(b"<svg/>").decode()])
def test_a_bad_picture_is_left_out_and_named(kept, picture: str):
    store = kept
    good = base64.b64encode(png()).decode()
    messages = [
        {"role": "user", "content": "look", "pictures": [picture, good]},
        {"role": "user", "content": "", "parent": 0, "pictures": [picture]},
    ]
    (made,) = import_chats(store.for_owner("eve"), read_file(json.dumps({"textloom": 1, "messages": messages}).encode()).chats)
    assert [remark.text for remark in made.remarks] == [
        "Message 1: a picture cannot be read and is left out.",
        "Message 2: a picture cannot be read and is left out.",
    ]
    chat = export_chat(store.for_owner("eve"), made.id)
    assert [(message.content, message.pictures) for message in chat.messages] == [("look", (png(),)), ("[picture]", ())]


def test_a_persons_chats_only(kept):
    store = kept
    (made,) = import_chats(store.for_owner("ann"), [chat_of([PortableMessage("user", "mine", pictures=(png(),))])])
    with pytest.raises(NotFound):
        export_chat(store.for_owner("bob"), made.id)
    (picture,) = store.for_owner("ann").messages.tree(made.id)[0].extra["pictures"]
    with pytest.raises(NotFound):
        store.for_owner("bob").pictures.data(picture)
    with pytest.raises(NotFound):
        store.for_owner("bob").pictures.check([picture])


def test_what_was_imported_is_found_by_the_search(kept):
    store = kept
    (made,) = import_chats(
        store.for_owner("ann"),
        [chat_of([PortableMessage("user", "一个关于灯塔的问题"), PortableMessage("assistant", "zebra crossing")])],
    )
    for words in ("灯塔", "灯", "zebra cro"):
        assert made.id in {entry.id for entry in store.for_owner("ann").chats.page(words)}


def test_pictures_that_no_message_names_are_forgotten_after_a_day(tmp_path: Path):
    store = ChatStore(tmp_path / "x.sqlite3")
    pictures = store.for_owner("ann").pictures
    kept_one, left = pictures.add(png("red")), pictures.add(png("blue"))
    assert pictures.add(png("red")) == kept_one
    chat = store.for_owner("ann").chats.create()
    store.for_owner("ann").messages.add(chat.id, None, "user", "look", extra={"pictures": [kept_one.id]})
    with store.database.transaction() as db:
        db.execute("UPDATE pictures SET created = created - 100000")
    store.close()
    store = ChatStore(tmp_path / "x.sqlite3")
    again = store.for_owner("ann").pictures
    assert again.data(kept_one.id) == (png("red"), "image/png")
    assert again.thumbnail(kept_one.id)[1] == "image/webp"
    with pytest.raises(NotFound):
        again.data(left.id)
    store.close()


def test_the_name_of_a_file_holds_no_path():
    chat = replace(chat_of([PortableMessage("user", "x")]), title="../../etc/pass: wd?")
    assert export_file(chat, "textloom")[0] == "etcpass wd.json"
    assert export_file(replace(chat, title="灯塔 的"), "markdown")[0] == "灯塔 的.md"
