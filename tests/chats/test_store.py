"""Chats are trees that belong to their owner, and nothing said in them is lost."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.chats.records import Figures, TokenStretch
from modules.chats.schema import MIGRATIONS
from modules.chats.store import ChatStore
from modules.errors import NotFound, Unavailable, UserError
from modules.generation.types import Token, TokenAlternative


@pytest.fixture
def store(tmp_path: Path):
    opened = ChatStore(tmp_path / "chats.sqlite3")
    yield opened
    opened.close()


def say(store: ChatStore, chat_id: int, *texts: str) -> list[int]:
    """Alternating messages, the user's first; their ids."""
    ids: list[int] = []
    for number, text in enumerate(texts):
        role = "assistant" if number % 2 else "user"
        ids.append(store.add("ann", chat_id, ids[-1] if ids else None, role, text).id)
    return ids


def shown(store: ChatStore, chat_id: int) -> list[str]:
    return [node.message.content for node in store.path("ann", chat_id)]


def test_a_chat_is_there_after_the_store_is_opened_again(tmp_path: Path):
    first = ChatStore(tmp_path / "chats.sqlite3")
    chat = first.create_chat("ann")
    say(first, chat.id, "Hello", "Hi!")
    first.close()
    again = ChatStore(tmp_path / "chats.sqlite3")
    assert shown(again, chat.id) == ["Hello", "Hi!"]
    again.close()


def test_the_title_is_the_beginning_of_the_first_message_until_people_choose_one(store: ChatStore):
    chat = store.create_chat("ann")
    say(store, chat.id, "# What is **love**?\nTell me", "A word.", "And hate?")
    assert store.chat("ann", chat.id).title == "What is love?"
    assert store.rename("ann", chat.id, "  Big   words ").title == "Big words"
    assert store.rename("ann", chat.id, "").title == "What is love?"


def test_a_second_answer_is_a_version_beside_the_first(store: ChatStore):
    chat = store.create_chat("ann")
    question, first = say(store, chat.id, "Why?", "Because.")
    second = store.add("ann", chat.id, question, "assistant", "It depends.")
    assert shown(store, chat.id) == ["Why?", "It depends."]
    assert store.path("ann", chat.id)[-1].versions == (first, second.id)
    store.select("ann", first)
    assert shown(store, chat.id) == ["Why?", "Because."]


def test_going_back_to_a_version_shows_all_that_followed_it(store: ChatStore):
    chat = store.create_chat("ann")
    first = say(store, chat.id, "a", "b", "c", "d")
    store.add("ann", chat.id, None, "user", "a, said better")
    assert shown(store, chat.id) == ["a, said better"]
    store.select("ann", first[0])
    assert shown(store, chat.id) == ["a", "b", "c", "d"]


def test_deleting_a_version_shows_the_one_beside_it_and_undo_brings_all_back(store: ChatStore):
    chat = store.create_chat("ann")
    question, _first = say(store, chat.id, "q", "one")
    second = store.add("ann", chat.id, question, "assistant", "two")
    store.add("ann", chat.id, second.id, "user", "and?")
    store.delete_branch("ann", second.id)
    assert shown(store, chat.id) == ["q", "one"]
    store.restore_branch("ann", second.id)
    assert shown(store, chat.id) == ["q", "two", "and?"]
    store.delete_branch("ann", question)
    assert shown(store, chat.id) == []


def test_a_deleted_chat_can_be_brought_back(store: ChatStore):
    chat = store.create_chat("ann")
    say(store, chat.id, "keep me")
    store.delete_chat("ann", chat.id)
    assert store.chats("ann") == []
    with pytest.raises(NotFound):
        store.path("ann", chat.id)
    store.restore_chat("ann", chat.id)
    assert shown(store, chat.id) == ["keep me"]


def test_branching_off_copies_the_messages_up_to_there_and_leaves_the_chat_alone(store: ChatStore):
    chat = store.create_chat("ann", settings={"system_prompt": "Be brief."})
    ids = say(store, chat.id, "a", "b", "c", "d")
    copy = store.branch_off("ann", ids[1])
    assert shown(store, copy.id) == ["a", "b"]
    assert copy.settings == {"system_prompt": "Be brief."}
    store.add("ann", copy.id, copy.leaf, "user", "another way")
    assert shown(store, chat.id) == ["a", "b", "c", "d"]


def test_nobody_reaches_the_chats_of_others(store: ChatStore):
    chat = store.create_chat("ann")
    (message,) = say(store, chat.id, "secret plan")
    attempts = [
        lambda: store.chat("bob", chat.id),
        lambda: store.path("bob", chat.id),
        lambda: store.tree("bob", chat.id),
        lambda: store.add("bob", chat.id, None, "user", "x"),
        lambda: store.message("bob", message),
        lambda: store.select("bob", message),
        lambda: store.delete_branch("bob", message),
        lambda: store.restore_branch("bob", message),
        lambda: store.branch_off("bob", message),
        lambda: store.annotate("bob", message, {"good": True}),
        lambda: store.reopen("bob", message),
        lambda: store.rename("bob", chat.id, "mine"),
        lambda: store.pin("bob", chat.id, True),
        lambda: store.change_settings("bob", chat.id, {}),
        lambda: store.delete_chat("bob", chat.id),
        lambda: store.restore_chat("bob", chat.id),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound):
            attempt()
    assert store.chats("bob", "secret") == []
    assert shown(store, chat.id) == ["secret plan"]


def test_a_message_cannot_follow_one_of_another_chat(store: ChatStore):
    one, other = store.create_chat("ann"), store.create_chat("ann")
    (foreign,) = say(store, other.id, "there")
    with pytest.raises(NotFound):
        store.add("ann", one.id, foreign, "assistant", "here")


@pytest.mark.parametrize("search", ["判决", "图书馆开门", "IBRAR", "100%", "a_b", 'say "yes"', "é"])
def test_search_finds_words_in_any_language_and_takes_every_sign_as_it_is(store: ChatStore, search: str):
    chat = store.create_chat("ann")
    say(store, chat.id, "first", '法院判决：图书馆开门。The Library is 100% open, a_b, say "yes", café')
    nothing = store.create_chat("ann")
    say(store, nothing.id, "100 axb")
    found = store.chats("ann", search)
    assert [entry.id for entry in found] == [chat.id]
    assert search.lower() in found[0].found.lower()


def test_search_follows_what_is_edited_streamed_and_deleted(store: ChatStore):
    chat = store.create_chat("ann")
    (question,) = say(store, chat.id, "question")
    reply = store.add("ann", chat.id, question, "assistant", "", state="streaming")
    store.write(reply.id, "a zebra", "streaming", Figures())
    store.write(reply.id, "a zebra and a giraffe", "whole", Figures(tokens=5))
    assert store.chats("ann", "giraffe")
    store.reopen("ann", reply.id)
    store.write(reply.id, "a zebra and a lion", "whole", Figures())
    assert store.chats("ann", "lion") and not store.chats("ann", "giraffe")
    store.delete_branch("ann", reply.id)
    assert not store.chats("ann", "zebra")


def test_pinned_chats_come_first_and_then_the_latest(store: ChatStore):
    chats = [store.create_chat("ann", title=name) for name in ("one", "two", "three")]
    say(store, chats[0].id, "newest")
    store.pin("ann", chats[1].id, True)
    assert [entry.title for entry in store.chats("ann")] == ["two", "one", "three"]


def test_a_reply_that_a_killed_server_left_is_marked_as_cut(tmp_path: Path):
    first = ChatStore(tmp_path / "chats.sqlite3")
    chat = first.create_chat("ann")
    (question,) = say(first, chat.id, "q")
    reply = first.add("ann", chat.id, question, "assistant", "", state="streaming")
    first.write(reply.id, "half an ans", "streaming", Figures(tokens=3))
    first.close()
    again = ChatStore(tmp_path / "chats.sqlite3")
    message = again.message("ann", reply.id)
    assert (message.state, message.content, message.figures.ending) == ("cut", "half an ans", "killed")
    assert again.chats("ann", "half an")
    again.close()


def test_a_reply_being_written_cannot_be_continued_twice(store: ChatStore):
    chat = store.create_chat("ann")
    _, reply = say(store, chat.id, "q", "a")
    store.reopen("ann", reply)
    with pytest.raises(UserError):
        store.reopen("ann", reply)


def test_revisions_change_with_the_chat_and_not_with_each_piece_of_a_reply(store: ChatStore):
    chat = store.create_chat("ann")
    (question,) = say(store, chat.id, "q")
    reply = store.add("ann", chat.id, question, "assistant", "", state="streaming")
    before, listed = store.revision("ann", chat.id), store.list_revision("ann")
    store.write(reply.id, "more", "streaming", Figures())
    assert (store.revision("ann", chat.id), store.list_revision("ann")) == (before, listed)
    store.write(reply.id, "more", "whole", Figures())
    assert store.revision("ann", chat.id) != before and store.list_revision("ann") != listed
    assert store.revision("bob", chat.id) is None


def test_preferences_are_kept_for_each_owner(store: ChatStore):
    store.set_preference("ann", "sampling", {"top_k": 3})
    assert store.preference("ann", "sampling") == {"top_k": 3}
    assert store.preference("bob", "sampling", "none") == "none"
    store.set_preference("ann", "sampling", None)
    assert store.preference("ann", "sampling") is None


def test_a_history_from_the_future_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / "chats.sqlite3"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(Unavailable, match="newer version"):
        ChatStore(path)


def test_a_file_that_is_no_history_is_refused_with_a_sentence(tmp_path: Path):
    (tmp_path / "chats.sqlite3").write_bytes(b"this is not a database, and long enough to be read as one" * 20)
    with pytest.raises(Unavailable, match="cannot be opened"):
        ChatStore(tmp_path / "chats.sqlite3")


_operations = st.lists(
    st.tuples(st.sampled_from(["add", "sibling", "select", "delete", "restore"]), st.integers(0, 30)), max_size=25
)


@settings(max_examples=60)
@given(_operations)
def test_whatever_is_done_the_shown_branch_runs_from_a_first_message_to_the_leaf(operations: list[tuple[str, int]]):
    store = ChatStore(":memory:")
    chat = store.create_chat("ann")
    ids = [store.add("ann", chat.id, None, "user", "root").id]
    for what, number in operations:
        at = ids[number % len(ids)]
        try:
            if what == "add":
                ids.append(store.add("ann", chat.id, at, "assistant", str(len(ids))).id)
            elif what == "sibling":
                ids.append(store.add("ann", chat.id, store.message("ann", at).parent_id, "user", str(len(ids))).id)
            else:
                {"select": store.select, "delete": store.delete_branch, "restore": store.restore_branch}[what]("ann", at)
        except NotFound:
            continue
        path = store.path("ann", chat.id)
        alive = store.tree("ann", chat.id)
        if path:
            assert path[0].message.parent_id is None
            assert path[-1].message.id == store.chat("ann", chat.id).leaf
        for before, after in itertools.pairwise(path):
            assert after.message.parent_id == before.message.id
        for node in path:
            siblings = [message.id for message in alive if message.parent_id == node.message.parent_id]
            assert node.versions == tuple(siblings)
    store.close()


def test_tokens_are_kept_with_their_message_in_stretches(store: ChatStore):
    chat = store.create_chat("ann")
    reply = store.add("ann", chat.id, None, "assistant", "")
    first = Token(5, "Hel", -0.25, (TokenAlternative(5, "Hel", -0.25), TokenAlternative(9, "Hey", -1.5)))
    second, third = Token(6, "lo", -2.0), Token(7, " you")
    figures = Figures()
    store.write(reply.id, "Hel", "streaming", figures, tokens=TokenStretch(0, (first,)))
    store.write(reply.id, "Hello", "cut", figures, tokens=TokenStretch(0, (second,)))
    store.write(reply.id, "Hello you", "whole", figures, tokens=TokenStretch(5, (third,)))
    assert store.tokens("ann", reply.id) == [TokenStretch(0, (first, second)), TokenStretch(5, (third,))]
    assert store.with_tokens([reply.id, 99]) == {reply.id}
    with pytest.raises(NotFound):
        store.tokens("ben", reply.id)
    store.set_tokens("ann", reply.id, [TokenStretch(0, (first,))])
    assert store.tokens("ann", reply.id) == [TokenStretch(0, (first,))]


def test_a_chat_is_named_after_what_is_asked_first(store: ChatStore):
    chat = store.create_chat("ann")
    said = store.add("ann", chat.id, None, "user", "Hello!")
    assert store.chat("ann", chat.id).title == "Hello!"
    answer = store.add("ann", chat.id, said.id, "assistant", "Hi. What can I do?")
    store.add("ann", chat.id, answer.id, "user", "Why is the sky *blue*?")
    assert store.chat("ann", chat.id).title == "Why is the sky blue?"
    store.rename("ann", chat.id, "Mine")
    store.add("ann", chat.id, answer.id, "user", "And the sea?")
    assert store.chat("ann", chat.id).title == "Mine"


def test_where_the_user_said_nothing_the_answer_names_the_chat_without_its_reasoning(store: ChatStore):
    chat = store.create_chat("ann")
    said = store.add("ann", chat.id, None, "user", "", extra={"pictures": [1]})
    reply = store.add("ann", chat.id, said.id, "assistant", "", state="streaming")
    store.write(reply.id, "<think>A red dog", "streaming", Figures())
    assert store.chat("ann", chat.id).title == ""
    before = store.list_revision("ann")
    store.write(reply.id, "<think>A red dog?</think>\n\nA **dog** in the snow.\nIt is red.", "whole", Figures())
    assert store.chat("ann", chat.id).title == "A dog in the snow."
    assert store.list_revision("ann") != before
    greeted = store.create_chat("ann")
    store.add("ann", greeted.id, None, "assistant", "*The lamp swings.* Who is there?")
    assert store.chat("ann", greeted.id).title == "The lamp swings. Who is there?"


def test_a_setting_is_replaced_in_all_chats_of_one_owner_and_in_what_made_their_replies(store: ChatStore):
    runs = {"runs": [{"model": "m", "settings": {"character": "Mira", "mode": "chat"}}, {"model": "m"}]}
    ours, other = (store.create_chat(owner, settings={"character": "Mira"}) for owner in ("ann", "ben"))
    zoe = store.create_chat("ann", settings={"character": "Zoe"})
    reply = store.add("ann", ours.id, None, "assistant", "Mira", extra=runs)
    gone = store.create_chat("ann", settings={"character": "Mira"})
    store.delete_chat("ann", gone.id)
    before = store.chat("ann", ours.id).revision
    store.replace_setting("ann", "character", "Mira", "米拉")
    assert store.chat("ann", ours.id).settings == {"character": "米拉"}
    assert store.chat("ann", ours.id).revision > before
    assert store.restore_chat("ann", gone.id).settings == {"character": "米拉"}
    assert store.chat("ann", zoe.id).settings == {"character": "Zoe"}
    assert store.chat("ben", other.id).settings == {"character": "Mira"}
    runs["runs"][0]["settings"] = {"character": "米拉", "mode": "chat"}
    assert store.message("ann", reply.id).extra == runs and store.message("ann", reply.id).content == "Mira"
