"""Files of chats as people have them: what other programs export comes in whole, what cannot is named, and nothing is mixed."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modules.chats.incoming import Incoming, read_file, read_upload
from modules.chats.portable import PortableChat
from modules.chats.remarks import WORDS
from modules.chats.store import ChatStore
from modules.chats.transfer import import_chats
from modules.errors import UserError
from tests.chats.test_transfer import png
from tests.field.mutations import damaged, how_many

INPUTS = Path(__file__).parent / "inputs" / "chats"
PNG = base64.b64encode(png()).decode()


def given(name: str) -> bytes:
    return (INPUTS / name).read_bytes().replace(b"base64,PNG", f"base64,{PNG}".encode())


def tree(chat: PortableChat) -> list[tuple[int | None, str, str]]:
    return [(message.parent, message.role, message.content) for message in chat.messages]


def remarks(chat: PortableChat) -> set[str]:
    return {remark.text for remark in chat.remarks}


def zipped(files: dict[str, bytes]) -> io.BytesIO:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    packed.seek(0)
    return packed


# --- what other programs export


def test_chatgpt_comes_with_its_branches_tools_and_instructions():
    incoming = read_file(given("chatgpt.json"))
    tides, tools = incoming.chats
    assert (tides.title, tides.titled, tides.created) == ("灯塔 and tides", True, 1700000000.5)
    assert tides.system_prompt == "I keep a lighthouse.\n\nBe brief."
    assert tree(tides) == [
        (None, "user", "What makes tides?"),
        (0, "assistant", "The wind."),
        (0, "assistant", "The moon."),
        (2, "user", "And the sun?"),
        (3, "assistant", "Half as much."),
        (2, "user", "每天几次？"),
        (5, "assistant", "两次。"),
    ]
    assert [message.content for message in tides.branch()][-1] == "Half as much."
    assert (tides.messages[1].model, tides.messages[1].created) == ("gpt-4", 1700000002.0)
    assert tree(tools) == [
        (None, "user", "[picture: red.png]\n\nCount the red points.\n\n[file: notes.pdf]"),
        (
            0,
            "assistant",
            "<think>\nCounting\nI shall run code.\n</think>\n\ntool_call: python\n```\nprint(8 * 6)\n```",
        ),
        (1, "tool", "48"),
        (2, "tool", "[picture: sediment://file_0000abcd]\n\n[part: audio_asset_pointer]"),
        (3, "assistant", "48 points."),
    ]
    assert remarks(tools) == {
        "Pictures that are not in the file: 2. Their names stand in the messages.",
        "Attached files that are not in the file: 1. Their names stand in the messages.",
        "Parts of messages that are neither text nor picture: 1. Their kinds stand in the messages.",
        "Messages that the service hides, left out: 1.",
    }
    assert [(out.number, out.title, out.why.text) for out in incoming.left_out] == [
        (3, "New chat", "There is no message in it.")
    ]


def test_the_whole_archive_of_chatgpt_brings_its_pictures():
    files = {
        "chat.html": b"<html>",
        "user.json": b'{"id": "u"}',
        "file-AbC123-red.png": png(),
        "dalle-generations/file_0000abcd-made.webp": png("blue"),
        "conversations.json": given("chatgpt.json"),
    }
    incoming = read_upload(zipped(files))
    assert [found.file for found in incoming.found] == ["conversations.json"] * 2 and len(incoming.left_out) == 1
    tools = incoming.chats[1]
    assert [message.pictures for message in tools.messages if message.pictures] == [(png(),), (png("blue"),)]
    assert tools.messages[0].content == "Count the red points.\n\n[file: notes.pdf]"
    assert not any("Pictures" in text for text in remarks(tools))


def test_sillytavern_comes_with_swipes_as_versions():
    (chat,) = read_file(given("sillytavern.jsonl")).chats
    assert chat.title == "Mira: Show me the sea."
    assert tree(chat) == [
        (None, "assistant", "Welcome."),
        (None, "assistant", "The lamp is lit."),
        (1, "user", "Show me the sea.\n\n[picture: user/images/Mira/sea.png]"),
        (2, "assistant", "<think>\nShe wants the window.\n</think>\n\n*points* There."),
        (2, "assistant", "It is dark."),
        (3, "assistant", 'tool_call: tide\n```json\n{\n "at": "noon"\n}\n```\n\ntool_result: tide\n```\nhigh\n```'),
        (5, "user", "(a hidden aside)"),
    ]
    assert chat.shown == 6 and [message.model for message in chat.messages[3:5]] == ["tiny-llama", "other"]
    assert chat.messages[2].created == 1709647380.0
    assert "Messages that were hidden from the model and are not hidden here: 1." in remarks(chat)


def test_a_group_of_sillytavern_says_who_speaks_and_a_broken_line_is_named():
    lines = given("sillytavern.jsonl").decode().splitlines()
    other = json.dumps({"name": "Leo", "is_user": False, "mes": "Bread?", "send_date": "1"})
    (chat,) = read_file("\n".join([*lines[:2], other, lines[2][:40], lines[2]]).encode()).chats
    assert [content for _, _, content in tree(chat)][1:3] == ["Mira: The lamp is lit.", "Leo: Bread?"]
    assert len(chat.messages) == 4 and "Line 4 cannot be read and is left out." in remarks(chat)


def test_open_webui_comes_with_its_tree_thoughts_and_calls():
    weather, old = read_file(given("openwebui.json")).chats
    assert (weather.title, weather.system_prompt, weather.shown) == ("Weather", "Answer in one line.", 3)
    call = 'tool_call: get_weather\n```json\n{\n "city": "Brest"\n}\n```\n\ntool_result: get_weather\n```\nrain\n```'
    assert tree(weather) == [
        (None, "user", "Rain today?\n\n[file: map.pdf]"),
        (0, "assistant", "No."),
        (0, "assistant", f"<think>\nLook it up.\n</think>\n\n{call}\n\nYes."),
        (2, "user", "Thanks."),
    ]
    assert weather.messages[0].pictures == (png(),)
    assert tree(old) == [(None, "user", "Hello?"), (0, "assistant", "Yes?")]


def test_lm_studio_comes_with_versions_and_steps():
    (chat,) = read_file(given("lmstudio.json")).chats
    assert (chat.title, chat.system_prompt, chat.created) == ("Harbours", "You know harbours.", 1730000000.0)
    call = 'tool_call: search\n```json\n{\n "q": "harbour"\n}\n```\n\ntool_result:\n```\nShanghai\n```'
    assert tree(chat) == [
        (None, "user", "[picture: 1730 - 1.png]\n\nWhich is largest?"),
        (0, "assistant", "Rotterdam."),
        (0, "assistant", f"<think>\nLargest by what?\n</think>\n\n{call}\n\nShanghai."),
        (2, "user", "谢谢"),
    ]


def test_claude_comes_with_its_branches_and_attached_texts():
    incoming = read_file(given("claude.json"))
    (chat,) = incoming.chats
    call = 'tool_call: draw\n```json\n{\n "knot": "hitch"\n}\n```\n\ntool_result: draw\n```\ndrawn\n```'
    assert tree(chat) == [
        (None, "user", "Which knot?\n\nrope.txt\n```\nten metres\n```\n\n[picture: dock.png]"),
        (0, "assistant", "A bowline."),
        (0, "assistant", f"<think>\nTwo loops.\n</think>\n\n{call}\n\nA hitch."),
    ]
    assert chat.created == 1735787045.0 and [out.number for out in incoming.left_out] == [2]


@pytest.mark.parametrize("key", ["conversations", "items", "conversation"])
def test_sharegpt_under_any_of_its_names(key: str):
    turns = [
        {"from": "human", "value": "Tides?"},
        {"from": "function_call", "value": '{"name": "tide"}'},
        {"from": "observation", "value": "high"},
        {"from": "gpt", "value": None},
        {"from": "gpt", "value": "High."},
    ]
    row = {key: turns, "system": "Be brief.", "tools": "[]", "images": ["https://x.example/a b.png"]}
    (chat,) = read_file(json.dumps(row).encode()).chats
    assert chat.system_prompt == "Be brief." and remarks(chat) == {"The descriptions of its tools are left out."}
    assert tree(chat) == [
        (None, "user", "Tides?\n\n![picture](<https://x.example/a%20b.png>)"),
        (0, "assistant", '{"name": "tide"}'),
        (1, "tool", "high"),
        (2, "assistant", "High."),
    ]
    bare = "\n".join(map(json.dumps, turns))
    assert [content for _, _, content in tree(read_file(bare.encode()).chats[0])] == [
        "Tides?",
        '{"name": "tide"}',
        "high",
        "High.",
    ]


def test_tools_and_pictures_of_openai_and_anthropic_are_kept():
    messages = [
        {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Look.",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "count", "arguments": '{"of": "red"}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "48"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "48"}, {"type": "tool_use", "name": "say", "input": {"n": 48}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "2", "content": "said ```"}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}, "end"]},
    ]
    (chat,) = read_file(json.dumps({"messages": messages, "tools": [{}]}).encode()).chats
    assert chat.messages[0].pictures == (png(),)
    assert [content for _, _, content in tree(chat)] == [
        "",
        '<think>\nLook.\n</think>\n\ntool_call: count\n```json\n{\n "of": "red"\n}\n```',
        "48",
        '48\n\ntool_call: say\n```json\n{\n "n": 48\n}\n```',
        "tool_result:\n````\nsaid ```\n````",
        "[part: input_audio]\n\nend",
    ]
    assert len(remarks(chat)) == 2


def test_a_file_of_a_newer_textloom_is_told_as_that():
    with pytest.raises(UserError, match="newer version of Textloom"):
        read_file(b'{"textloom": 2, "threads": []}')


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["chatgpt.json", "sillytavern.jsonl"])
def test_other_encodings_of_unicode(name: str, encoding: str):
    data = given(name).decode()
    assert read_file(data.encode(encoding)) == read_file(data.encode())


def test_markdown_in_utf_16():
    (chat,) = read_file("# 茶\n\n## User\n\n你好\n".encode("utf-16")).chats
    assert (chat.title, tree(chat)) == ("茶", [(None, "user", "你好")])


def test_lines_may_hold_separators_of_unicode_and_lists_may_stand_in_an_object():
    rows = [{"messages": [{"role": "user", "content": f"a\u2028b {n}"}]} for n in range(3)]
    jsonl = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert [chat.messages[0].content for chat in read_file(jsonl.encode()).chats] == ["a\u2028b 0", "a\u2028b 1", "a\u2028b 2"]
    for key in ("conversations", "items", "chats", "data"):
        assert read_file(json.dumps({"version": 1, key: rows}).encode()) == read_file(json.dumps(rows).encode())


# --- 49 good ones and an odd one


def row(n: int) -> dict[str, Any]:
    said = [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}]
    return {"id": f"chat-{n:04d}-of-many", "title": f"Chat {n}", "messages": said, "model": "a model that answers"}


ODD: dict[str, tuple[str, str]] = {
    "no list": ('{"title": "Odd", "messages": 3}', "At messages there should be a list."),
    "unknown role": ('{"title": "Odd", "messages": [{"role": "king", "content": "x"}]}', "Nobody knows who speaks as “king”."),
    "no content": ('{"title": "Odd", "messages": []}', "There is no message in it."),
    "number": ('{"title": "Odd", "messages": [{"role": "user", "content": 5}]}', "At messages.1.content there"),
    "half a pair": (
        '{"title": "Odd", "messages": [{"role": "user", "content": "\\ud800"}]}',
        "It has half of a surrogate pair",
    ),
    "deep": ('{"title": "Odd", "messages": ' + "[" * 20_000 + "]" * 20_000 + "}", "It is nested too deeply."),
    "a little deep": ('{"title": "Odd", "messages": ' + "[" * 300 + "]" * 300 + "}", "It is nested too deeply."),
    "no chat": ('{"title": "Odd", "body": "a page"}', "It is in no form of a chat that is known."),
    "no object": ('"Odd"', "It is in no form of a chat that is known."),
    "null": ("null", "It is in no form of a chat that is known."),
    "broken": ('{"title": "Odd", "messages": [{"role": "user" "content": "x"}]}', "Its JSON is broken, 46 characters"),
    "open": ('{"title": "Odd", "messages": [{"role": "user", "content": "x', "Its JSON is broken"),
    "newer": ('{"title": "Odd", "textloom": 7, "threads": []}', "A newer version of Textloom wrote it"),
    "digits": ('{"title": "Odd", "messages": [], "n": ' + "9" * 5000 + "}", "Its JSON is broken"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", [0, 20, 49])
@pytest.mark.parametrize("by_line", [False, True], ids=["list", "lines"])
def test_an_odd_one_among_49_is_named_and_they_come_in(odd: str, place: int, by_line: bool):
    text, reason = ODD[odd]
    rows = [json.dumps(row(n)) for n in range(49)]
    rows.insert(place, text)
    incoming = read_file(("\n".join(rows) if by_line else "[" + ",\n".join(rows) + "]").encode())
    assert [chat.title for chat in incoming.chats] == [f"Chat {n}" for n in range(49)]
    assert all(len(chat.messages) == 2 for chat in incoming.chats)
    (out,) = incoming.left_out
    assert out.number == place + 1 and out.why.text.startswith(reason)
    assert out.title == ("Odd" if text.startswith("{") else "")


def test_a_file_that_ends_in_the_middle_brings_what_is_whole():
    text = json.dumps([row(n) for n in range(50)])
    incoming = read_file(text[:-30].encode())
    assert len(incoming.chats) == 49
    assert [(out.number, out.title, out.why.text) for out in incoming.left_out] == [
        (50, "Chat 49", "The file ends in the middle of it.")
    ]


def test_bytes_that_are_no_utf_8_leave_out_the_chat_they_stand_in():
    data = json.dumps([row(n) for n in range(50)]).encode().replace(b"question 7", b"question \xb8\xe7", 1)
    incoming = read_file(data)
    assert len(incoming.chats) == 49
    assert [(out.number, out.why.text) for out in incoming.left_out] == [(8, "It has bytes that are not UTF-8.")]


@pytest.mark.parametrize("before", ['"', "NaN", "}", ",,", '{"id": '])
def test_what_stands_before_the_list_hides_no_chat(before: str):
    incoming = read_file((before + json.dumps([row(n) for n in range(5)])).encode())
    assert [chat.title for chat in incoming.chats] == [f"Chat {n}" for n in range(5)]


def test_each_file_of_an_archive_is_read_by_itself():
    files = {
        "a/Good.conversation.json": given("lmstudio.json"),
        "a/Bad.conversation.json": b"{",
        "b/Mira.jsonl": given("sillytavern.jsonl"),
        "b/picture.png": png(),
        "__MACOSX/b/._Mira.jsonl": b"\0\5\26",
    }
    incoming = read_upload(zipped(files))
    assert [found.file for found in incoming.found] == ["a/Good.conversation.json", "b/Mira.jsonl"]
    assert [out.file for out in incoming.left_out] == ["a/Bad.conversation.json"]
    with pytest.raises(UserError, match="no file of chats"):
        read_upload(zipped({"x.png": png()}))
    with pytest.raises(UserError, match="zip"):
        read_upload(io.BytesIO(b"PK\3\4 and no more"))


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({"a": "b", "b": "a"}, "Its messages follow each other in a circle."),
        ({"a": None, "b": "gone"}, "Messages that follow one that is not there: 1. Each begins a branch of its own."),
    ],
)
def test_a_tree_that_is_none_is_told(nodes: dict[str, str | None], reason: str):
    messages = {
        id_: {"message": {"author": {"role": "user"}, "content": {"content_type": "text", "parts": [id_]}}, "parent": parent}
        for id_, parent in nodes.items()
    }
    try:
        (chat,) = read_file(json.dumps([{"mapping": messages}]).encode()).chats
        assert reason in remarks(chat) and [content for _, _, content in tree(chat)] == ["a", "b"]
    except UserError as error:
        assert error.message == reason


# --- into the store


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[ChatStore]:
    store = ChatStore(tmp_path / "chats.sqlite3")
    yield store
    store.close()


def test_others_go_on_while_many_chats_come_in_and_see_none_of_them_before(kept, monkeypatch):
    store = kept
    seen: list[int] = []
    monkeypatch.setattr("modules.chats.transfer.LONGEST", 0.0)
    monkeypatch.setattr("modules.chats.transfer.LEAST", 1)

    def others_turn(seconds: float) -> None:
        assert not store.database._db.in_transaction
        seen.append(len(store.for_owner("ann").chats.page()))

    monkeypatch.setattr("modules.chats.transfer.time", clock_with(others_turn))
    import_chats(store.for_owner("ann"), read_file(json.dumps([row(n) for n in range(20)]).encode()).chats)
    assert len(seen) > 40 and set(seen) == {0}
    assert len(store.for_owner("ann").chats.page()) == 20


def clock_with(sleep: Callable[[float], None]) -> SimpleNamespace:
    """`time` for one module: other threads of this process sleep as they did."""
    return SimpleNamespace(**{**vars(time), "sleep": sleep})


def test_a_failure_in_the_middle_brings_nothing_in_and_leaves_nothing(kept, monkeypatch):
    store = kept
    chats = read_file(json.dumps([row(n) for n in range(20)]).encode()).chats
    monkeypatch.setattr("modules.chats.transfer.LONGEST", 0.0)
    monkeypatch.setattr("modules.chats.transfer.LEAST", 1)
    turns = iter(range(30))

    def break_off(seconds: float) -> None:
        if next(turns, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("modules.chats.transfer.time", clock_with(break_off))
    with pytest.raises(KeyboardInterrupt):
        import_chats(store.for_owner("ann"), chats)
    assert store.for_owner("ann").chats.page() == []
    with store.database.reading() as db:
        assert db.execute("SELECT count(*) FROM messages").fetchone()[0] == 0


def test_what_a_killed_server_was_bringing_in_is_gone_after_its_start(tmp_path: Path, monkeypatch):
    store = ChatStore(tmp_path / "x.sqlite3")
    chats = read_file(json.dumps([row(n) for n in range(5)]).encode()).chats
    monkeypatch.setattr("modules.chats.transfer.LONGEST", 0.0)
    monkeypatch.setattr("modules.chats.transfer.LEAST", 1)

    def killed(seconds: float) -> None:
        store.close()  # nothing more is written, not even that it broke off
        raise KeyboardInterrupt

    monkeypatch.setattr("modules.chats.transfer.time", clock_with(killed))
    with pytest.raises(KeyboardInterrupt):
        import_chats(store.for_owner("ann"), chats)
    again = ChatStore(tmp_path / "x.sqlite3")
    with again.database.reading() as db:
        assert [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("chats", "messages")] == [0, 0]
    again.close()


def test_the_chat_that_was_written_to_last_stands_first(kept):
    store = kept
    first = store.for_owner("ann").chats.create("before")
    chats = read_file(given("claude.json")).chats + read_file(given("chatgpt.json")).chats
    import_chats(store.for_owner("ann"), chats)
    assert [chat.title for chat in store.for_owner("ann").chats.page()] == [
        "Knots",
        "Tools and pictures",
        "灯塔 and tides",
        first.title,
    ]


# --- damaged files

WORDS_OF_CHATS = ["harbour", "lantern", "mercury", "orchard", "pyramid"]
"""One for each chat; a bit more or less makes none of another."""


def marked(form: str, n: int) -> Any:
    """A chat of a form, with a word of its own in each message."""
    word = WORDS_OF_CHATS[n]
    said = [("user", f"{word} 0"), ("assistant", f"{word} 1"), ("user", f"{word} 2"), ("assistant", f"{word} 3")]
    title, id_ = f"Title of the chat {n}", f"{n:08d}-0000-4000-8000-000000000000"
    match form:
        case "openai":
            messages = [{"role": role, "content": text} for role, text in said]
            return {"id": id_, "title": title, "messages": messages}
        case "sharegpt":
            turns = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in said]
            return {"id": id_, "title": title, "conversations": turns}
        case "pairs":
            pairs = [[said[0][1], said[1][1]], [said[2][1], said[3][1]]]
            return {"metadata": {"id": id_, "title": title}, "internal": pairs, "visible": pairs}
        case "textloom":
            messages = [
                {"role": role, "content": text, "parent": at - 1 if at else None} for at, (role, text) in enumerate(said)
            ]
            return {"textloom": 1, "title": title, "titled": True, "created": 1700000000.0, "messages": messages, "shown": 3}
        case "chatgpt":
            nodes: dict[str, Any] = {f"{n}-root": {"message": None, "parent": None, "children": [f"{n}-0"]}}
            for at, (role, text) in enumerate(said):
                message = {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}}
                parent = f"{n}-{at - 1}" if at else f"{n}-root"
                nodes[f"{n}-{at}"] = {"message": message, "parent": parent, "children": [f"{n}-{at + 1}"] if at < 3 else []}
            return {"title": title, "create_time": 1.7e9, "mapping": nodes, "current_node": f"{n}-3", "id": id_}
        case "openwebui":
            messages = {
                f"{n}-{at}": {"role": role, "content": text, "parentId": f"{n}-{at - 1}" if at else None}
                for at, (role, text) in enumerate(said)
            }
            return {
                "id": id_,
                "title": title,
                "chat": {"title": title, "history": {"messages": messages, "currentId": f"{n}-3"}},
            }
        case "lmstudio":
            parts = [{"versions": [{"role": role, "content": [{"type": "text", "text": text}]}]} for role, text in said]
            return {"name": title, "createdAt": 1730000000000, "messages": parts, "usePerChatPredictionConfig": True}
        case _:
            messages = [
                {
                    "uuid": f"{n}-{at}",
                    "sender": {"user": "human", "assistant": "assistant"}[role],
                    "content": [{"type": "text", "text": text}],
                    "parent_message_uuid": f"{n}-{at - 1}" if at else None,
                }
                for at, (role, text) in enumerate(said)
            ]
            return {"uuid": id_, "name": title, "created_at": "2025-01-02T03:04:05Z", "chat_messages": messages}


FORMS = ["openai", "sharegpt", "pairs", "textloom", "chatgpt", "openwebui", "lmstudio", "claude"]


def read_damaged(data: bytes) -> Incoming | None:
    try:
        return read_file(data)
    except UserError as error:
        assert error.message[0].isupper() and "\n" not in error.message and len(error.message) < 400
        return None


def check_told(incoming: Incoming) -> None:
    for out in incoming.left_out:
        assert out.why.code in WORDS and out.why.text and len(out.why.text) < 300
    for chat in incoming.chats:
        assert chat.messages or chat.system_prompt
        for at, message in enumerate(chat.messages):
            assert message.parent is None or message.parent < at
            message.content.encode()
        assert all(remark.text for remark in chat.remarks)


def objects_in(text: str) -> Iterator[str]:
    """The JSON objects that stand in a text and hold more than one word of `WORDS_OF_CHATS`, as they are written."""
    decode = json.JSONDecoder().raw_decode
    for found in re.finditer(r"\{", text):
        with contextlib.suppress(ValueError, RecursionError):
            yield text[found.start() : decode(text, found.start())[1]]


def words_in(text: str) -> frozenset[str]:
    return frozenset(word for word in WORDS_OF_CHATS if word in text)


@pytest.mark.slow
@pytest.mark.parametrize("by_line", [False, True], ids=["list", "lines"])
@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_lose_nothing_and_mix_nothing(form: str, by_line: bool):
    values = [json.dumps(marked(form, n)) for n in range(5)]
    whole = {value: tree(read_file(value.encode()).chats[0]) for value in values}
    data = ("\n".join(values) if by_line else "[" + ", ".join(values) + "]").encode()
    assert [tree(chat) for chat in read_file(data).chats] == list(whole.values())
    for damage in damaged(data, how_many(40), seed=1):
        incoming = read_damaged(damage)
        text = damage.decode("utf-8", "replace")
        came = [tree(chat) for chat in incoming.chats] if incoming else []
        if incoming is not None:
            check_told(incoming)
        for chat in came:  # messages of two chats only where the file itself has them in one
            if len(words := words_in(json.dumps(chat))) > 1:
                assert any(words <= words_in(value) for value in objects_in(text)), damage
        if damage.startswith((b"\xff\xfe", b"\0")):  # it says that it is UTF-16
            continue
        for value in values:
            if value in (text.split("\n") if by_line else text):
                assert whole[value] in came, damage


@pytest.mark.parametrize("name", sorted(path.name for path in INPUTS.iterdir()))
def test_damaged_exports_are_read_or_refused_in_a_sentence(name: str):
    for damage in damaged(given(name), how_many(40), seed=2):
        if incoming := read_damaged(damage):
            check_told(incoming)


def test_damaged_archives_are_read_or_refused_in_a_sentence():
    data = zipped({"conversations.json": given("chatgpt.json"), "file-AbC123-red.png": png()}).read()
    for damage in damaged(data, how_many(40), seed=3):
        try:
            check_told(read_upload(io.BytesIO(damage)))
        except UserError as error:
            assert "\n" not in error.message
