"""What people type into the search box is text, whatever FTS5 and LIKE would read in it; and a clock may be set back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.chats.store import ChatStore

OPERATORS = [
    'say "yes"',
    '"',
    '""',
    "'",
    "AND",
    "a AND b",
    "a OR b",
    "NOT a",
    "a NOT b",
    "NEAR(one two, 5)",
    "one NEAR two",
    "one*",
    "^one",
    "one + two",
    "content : one",
    "{content} : one",
    "- content : one",
    "-one",
    "(one OR two) AND three",
    "one-two",
    "one.two/three\\four",
    "100%",
    "a_b",
    "%_\\",
    "*",
    "()",
    ";DROP TABLE chats;--",
    "你好 AND 世界",
    "rank MATCH 'one'",
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChatStore]:
    store = ChatStore(tmp_path / "chats.sqlite3")
    yield store
    store.close()


@pytest.mark.parametrize("text", OPERATORS)
def test_every_operator_is_found_as_text(store, text):
    wanted, other = store.for_owner("ann").chats.create(title="a"), store.for_owner("ann").chats.create(title="b")
    store.for_owner("ann").messages.add(wanted.id, None, "user", f"before {text} after")
    store.for_owner("ann").messages.add(other.id, None, "user", "one two three content four abc axb 1000")
    assert [entry.id for entry in store.for_owner("ann").chats.page(text)] == [wanted.id]


@pytest.mark.parametrize("text", ["a\0b", "\0", "\0\0\0\0", "one\0 OR two", "\x01\x1f", "�" * 5, "x" * 100_000])
def test_no_search_text_breaks(store, text):
    chat = store.for_owner("ann").chats.create(title="a")
    store.for_owner("ann").messages.add(chat.id, None, "user", "one two")
    assert len(store.for_owner("ann").chats.page(text)) <= 1


def test_the_latest_chat_is_first_though_the_clock_was_set_back(store, monkeypatch):
    first, second = store.for_owner("ann").chats.create(), store.for_owner("ann").chats.create()
    others = store.for_owner("bob").chats.create()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    store.for_owner("ann").messages.add(first.id, None, "user", "after the clock was set back")
    assert [entry.id for entry in store.for_owner("ann").chats.page()] == [first.id, second.id]
    third = store.for_owner("ann").chats.create()
    assert [entry.id for entry in store.for_owner("ann").chats.page()] == [third.id, first.id, second.id]
    assert store.for_owner("carl").chats.create().updated < others.updated
