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
        ids.append(store.for_owner("ann").messages.add(chat_id, ids[-1] if ids else None, role, text).id)
    return ids


def shown(store: ChatStore, chat_id: int) -> list[str]:
    return [node.message.content for node in store.for_owner("ann").messages.path(chat_id)]


def test_a_chat_is_there_after_the_store_is_opened_again(tmp_path: Path):
    first = ChatStore(tmp_path / "chats.sqlite3")
    chat = first.for_owner("ann").chats.create()
    say(first, chat.id, "Hello", "Hi!")
    first.close()
    again = ChatStore(tmp_path / "chats.sqlite3")
    assert shown(again, chat.id) == ["Hello", "Hi!"]
    again.close()


def test_the_title_is_the_beginning_of_the_first_message_until_people_choose_one(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    say(store, chat.id, "# What is **love**?\nTell me", "A word.", "And hate?")
    assert store.for_owner("ann").chats.get(chat.id).title == "What is love?"
    assert store.for_owner("ann").chats.rename(chat.id, "  Big   words ").title == "Big words"
    assert store.for_owner("ann").chats.rename(chat.id, "").title == "What is love?"


def test_a_second_answer_is_a_version_beside_the_first(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    question, first = say(store, chat.id, "Why?", "Because.")
    second = store.for_owner("ann").messages.add(chat.id, question, "assistant", "It depends.")
    assert shown(store, chat.id) == ["Why?", "It depends."]
    assert store.for_owner("ann").messages.path(chat.id)[-1].versions == (first, second.id)
    store.for_owner("ann").messages.select(first)
    assert shown(store, chat.id) == ["Why?", "Because."]


def test_going_back_to_a_version_shows_all_that_followed_it(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    first = say(store, chat.id, "a", "b", "c", "d")
    store.for_owner("ann").messages.add(chat.id, None, "user", "a, said better")
    assert shown(store, chat.id) == ["a, said better"]
    store.for_owner("ann").messages.select(first[0])
    assert shown(store, chat.id) == ["a", "b", "c", "d"]


def test_deleting_a_version_shows_the_one_beside_it_and_undo_brings_all_back(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    question, _first = say(store, chat.id, "q", "one")
    second = store.for_owner("ann").messages.add(chat.id, question, "assistant", "two")
    store.for_owner("ann").messages.add(chat.id, second.id, "user", "and?")
    store.for_owner("ann").messages.delete_branch(second.id)
    assert shown(store, chat.id) == ["q", "one"]
    store.for_owner("ann").messages.restore_branch(second.id)
    assert shown(store, chat.id) == ["q", "two", "and?"]
    store.for_owner("ann").messages.delete_branch(question)
    assert shown(store, chat.id) == []


def test_a_deleted_chat_can_be_brought_back(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    say(store, chat.id, "keep me")
    store.for_owner("ann").chats.delete(chat.id)
    assert store.for_owner("ann").chats.page() == []
    with pytest.raises(NotFound):
        store.for_owner("ann").messages.path(chat.id)
    store.for_owner("ann").chats.restore(chat.id)
    assert shown(store, chat.id) == ["keep me"]


def test_branching_off_copies_the_messages_up_to_there_and_leaves_the_chat_alone(store: ChatStore):
    chat = store.for_owner("ann").chats.create(settings={"system_prompt": "Be brief."})
    ids = say(store, chat.id, "a", "b", "c", "d")
    copy = store.for_owner("ann").messages.branch_off(ids[1])
    assert shown(store, copy.id) == ["a", "b"]
    assert copy.settings == {"system_prompt": "Be brief."}
    store.for_owner("ann").messages.add(copy.id, copy.leaf, "user", "another way")
    assert shown(store, chat.id) == ["a", "b", "c", "d"]


def test_nobody_reaches_the_chats_of_others(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    (message,) = say(store, chat.id, "secret plan")
    attempts = [
        lambda: store.for_owner("bob").chats.get(chat.id),
        lambda: store.for_owner("bob").messages.path(chat.id),
        lambda: store.for_owner("bob").messages.tree(chat.id),
        lambda: store.for_owner("bob").messages.add(chat.id, None, "user", "x"),
        lambda: store.for_owner("bob").messages.get(message),
        lambda: store.for_owner("bob").messages.select(message),
        lambda: store.for_owner("bob").messages.delete_branch(message),
        lambda: store.for_owner("bob").messages.restore_branch(message),
        lambda: store.for_owner("bob").messages.branch_off(message),
        lambda: store.for_owner("bob").tokens.get(message),
        lambda: store.for_owner("bob").tokens.replace(message, []),
        lambda: store.for_owner("bob").messages.answered(message),
        lambda: store.for_owner("bob").messages.show(message),
        lambda: store.for_owner("bob").messages.annotate(message, {"good": True}),
        lambda: store.for_owner("bob").messages.reopen(message),
        lambda: store.for_owner("bob").chats.rename(chat.id, "mine"),
        lambda: store.for_owner("bob").chats.pin(chat.id, True),
        lambda: store.for_owner("bob").chats.change_settings(chat.id, {}),
        lambda: store.for_owner("bob").chats.delete(chat.id),
        lambda: store.for_owner("bob").chats.restore(chat.id),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound):
            attempt()
    assert store.for_owner("bob").chats.page("secret") == []
    assert shown(store, chat.id) == ["secret plan"]


def test_a_message_cannot_follow_one_of_another_chat(store: ChatStore):
    one, other = store.for_owner("ann").chats.create(), store.for_owner("ann").chats.create()
    (foreign,) = say(store, other.id, "there")
    with pytest.raises(NotFound):
        store.for_owner("ann").messages.add(one.id, foreign, "assistant", "here")


@pytest.mark.parametrize("search", ["判决", "图书馆开门", "IBRAR", "100%", "a_b", 'say "yes"', "é"])
def test_search_finds_words_in_any_language_and_takes_every_sign_as_it_is(store: ChatStore, search: str):
    chat = store.for_owner("ann").chats.create()
    say(store, chat.id, "first", '法院判决：图书馆开门。The Library is 100% open, a_b, say "yes", café')
    nothing = store.for_owner("ann").chats.create()
    say(store, nothing.id, "100 axb")
    found = store.for_owner("ann").chats.page(search)
    assert [entry.id for entry in found] == [chat.id]
    assert search.lower() in found[0].found.lower()


def test_search_follows_what_is_edited_streamed_and_deleted(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    (question,) = say(store, chat.id, "question")
    reply = store.for_owner("ann").messages.add(chat.id, question, "assistant", "", state="streaming")
    store.for_owner("ann").messages.write(reply.id, "a zebra", "streaming", Figures())
    store.for_owner("ann").messages.write(reply.id, "a zebra and a giraffe", "whole", Figures(tokens=5))
    assert store.for_owner("ann").chats.page("giraffe")
    store.for_owner("ann").messages.reopen(reply.id)
    store.for_owner("ann").messages.write(reply.id, "a zebra and a lion", "whole", Figures())
    assert store.for_owner("ann").chats.page("lion") and not store.for_owner("ann").chats.page("giraffe")
    store.for_owner("ann").messages.delete_branch(reply.id)
    assert not store.for_owner("ann").chats.page("zebra")


def test_pinned_chats_come_first_and_then_the_latest(store: ChatStore):
    chats = [store.for_owner("ann").chats.create(title=name) for name in ("one", "two", "three")]
    say(store, chats[0].id, "newest")
    store.for_owner("ann").chats.pin(chats[1].id, True)
    assert [entry.title for entry in store.for_owner("ann").chats.page()] == ["two", "one", "three"]


def test_a_reply_that_a_killed_server_left_is_marked_as_cut(tmp_path: Path):
    first = ChatStore(tmp_path / "chats.sqlite3")
    chat = first.for_owner("ann").chats.create()
    (question,) = say(first, chat.id, "q")
    reply = first.for_owner("ann").messages.add(chat.id, question, "assistant", "", state="streaming")
    first.for_owner("ann").messages.write(reply.id, "half an ans", "streaming", Figures(tokens=3))
    first.close()
    again = ChatStore(tmp_path / "chats.sqlite3")
    message = again.for_owner("ann").messages.get(reply.id)
    assert (message.state, message.content, message.figures.ending) == ("cut", "half an ans", "killed")
    assert again.for_owner("ann").chats.page("half an")
    again.close()


def test_a_reply_being_written_cannot_be_continued_twice(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    _, reply = say(store, chat.id, "q", "a")
    store.for_owner("ann").messages.reopen(reply)
    with pytest.raises(UserError):
        store.for_owner("ann").messages.reopen(reply)


def test_revisions_change_with_the_chat_and_not_with_each_piece_of_a_reply(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    (question,) = say(store, chat.id, "q")
    reply = store.for_owner("ann").messages.add(chat.id, question, "assistant", "", state="streaming")
    before, listed = store.for_owner("ann").chats.revision(chat.id), store.for_owner("ann").chats.list_revision()
    store.for_owner("ann").messages.write(reply.id, "more", "streaming", Figures())
    assert (store.for_owner("ann").chats.revision(chat.id), store.for_owner("ann").chats.list_revision()) == (before, listed)
    store.for_owner("ann").messages.write(reply.id, "more", "whole", Figures())
    assert store.for_owner("ann").chats.revision(chat.id) != before and store.for_owner("ann").chats.list_revision() != listed
    assert store.for_owner("bob").chats.revision(chat.id) is None


def test_preferences_are_kept_for_each_owner(store: ChatStore):
    store.for_owner("ann").preferences.set("sampling", {"top_k": 3})
    assert store.for_owner("ann").preferences.get("sampling") == {"top_k": 3}
    assert store.for_owner("bob").preferences.get("sampling", "none") == "none"
    store.for_owner("ann").preferences.set("sampling", None)
    assert store.for_owner("ann").preferences.get("sampling") is None


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
    chat = store.for_owner("ann").chats.create()
    ids = [store.for_owner("ann").messages.add(chat.id, None, "user", "root").id]
    for what, number in operations:
        at = ids[number % len(ids)]
        try:
            if what == "add":
                ids.append(store.for_owner("ann").messages.add(chat.id, at, "assistant", str(len(ids))).id)
            elif what == "sibling":
                ids.append(
                    store.for_owner("ann")
                    .messages.add(chat.id, store.for_owner("ann").messages.get(at).parent_id, "user", str(len(ids)))
                    .id
                )
            else:
                messages = store.for_owner("ann").messages
                {"select": messages.select, "delete": messages.delete_branch, "restore": messages.restore_branch}[what](at)
        except NotFound:
            continue
        path = store.for_owner("ann").messages.path(chat.id)
        alive = store.for_owner("ann").messages.tree(chat.id)
        if path:
            assert path[0].message.parent_id is None
            assert path[-1].message.id == store.for_owner("ann").chats.get(chat.id).leaf
        for before, after in itertools.pairwise(path):
            assert after.message.parent_id == before.message.id
        for node in path:
            siblings = [message.id for message in alive if message.parent_id == node.message.parent_id]
            assert node.versions == tuple(siblings)
    store.close()


def test_tokens_are_kept_with_their_message_in_stretches(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    reply = store.for_owner("ann").messages.add(chat.id, None, "assistant", "")
    first = Token(5, "Hel", -0.25, (TokenAlternative(5, "Hel", -0.25), TokenAlternative(9, "Hey", -1.5)))
    second, third = Token(6, "lo", -2.0), Token(7, " you")
    figures = Figures()
    store.for_owner("ann").messages.write(reply.id, "Hel", "streaming", figures, tokens=TokenStretch(0, (first,)))
    store.for_owner("ann").messages.write(reply.id, "Hello", "cut", figures, tokens=TokenStretch(0, (second,)))
    store.for_owner("ann").messages.write(reply.id, "Hello you", "whole", figures, tokens=TokenStretch(5, (third,)))
    assert store.for_owner("ann").tokens.get(reply.id) == [TokenStretch(0, (first, second)), TokenStretch(5, (third,))]
    assert store.for_owner("ann").tokens.known([reply.id, 99]) == {reply.id}
    with pytest.raises(NotFound):
        store.for_owner("ben").tokens.get(reply.id)
    store.for_owner("ann").tokens.replace(reply.id, [TokenStretch(0, (first,))])
    assert store.for_owner("ann").tokens.get(reply.id) == [TokenStretch(0, (first,))]


def test_a_chat_is_named_after_what_is_asked_first(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    said = store.for_owner("ann").messages.add(chat.id, None, "user", "Hello!")
    assert store.for_owner("ann").chats.get(chat.id).title == "Hello!"
    answer = store.for_owner("ann").messages.add(chat.id, said.id, "assistant", "Hi. What can I do?")
    store.for_owner("ann").messages.add(chat.id, answer.id, "user", "Why is the sky *blue*?")
    assert store.for_owner("ann").chats.get(chat.id).title == "Why is the sky blue?"
    store.for_owner("ann").chats.rename(chat.id, "Mine")
    store.for_owner("ann").messages.add(chat.id, answer.id, "user", "And the sea?")
    assert store.for_owner("ann").chats.get(chat.id).title == "Mine"


def test_where_the_user_said_nothing_the_answer_names_the_chat_without_its_reasoning(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    said = store.for_owner("ann").messages.add(chat.id, None, "user", "", extra={"pictures": [1]})
    reply = store.for_owner("ann").messages.add(chat.id, said.id, "assistant", "", state="streaming")
    store.for_owner("ann").messages.write(reply.id, "<think>A red dog", "streaming", Figures())
    assert store.for_owner("ann").chats.get(chat.id).title == ""
    before = store.for_owner("ann").chats.list_revision()
    store.for_owner("ann").messages.write(
        reply.id, "<think>A red dog?</think>\n\nA **dog** in the snow.\nIt is red.", "whole", Figures()
    )
    assert store.for_owner("ann").chats.get(chat.id).title == "A dog in the snow."
    assert store.for_owner("ann").chats.list_revision() != before
    greeted = store.for_owner("ann").chats.create()
    store.for_owner("ann").messages.add(greeted.id, None, "assistant", "*The lamp swings.* Who is there?")
    assert store.for_owner("ann").chats.get(greeted.id).title == "The lamp swings. Who is there?"


def test_a_setting_is_replaced_in_all_chats_of_one_owner_and_in_what_made_their_replies(store: ChatStore):
    runs = {"runs": [{"model": "m", "settings": {"character": "Mira", "mode": "chat"}}, {"model": "m"}]}
    ours, other = (store.for_owner(owner).chats.create(settings={"character": "Mira"}) for owner in ("ann", "ben"))
    zoe = store.for_owner("ann").chats.create(settings={"character": "Zoe"})
    reply = store.for_owner("ann").messages.add(ours.id, None, "assistant", "Mira", extra=runs)
    gone = store.for_owner("ann").chats.create(settings={"character": "Mira"})
    store.for_owner("ann").chats.delete(gone.id)
    before = store.for_owner("ann").chats.get(ours.id).revision
    store.for_owner("ann").chats.replace_setting("character", "Mira", "米拉")
    assert store.for_owner("ann").chats.get(ours.id).settings == {"character": "米拉"}
    assert store.for_owner("ann").chats.get(ours.id).revision > before
    assert store.for_owner("ann").chats.restore(gone.id).settings == {"character": "米拉"}
    assert store.for_owner("ann").chats.get(zoe.id).settings == {"character": "Zoe"}
    assert store.for_owner("ben").chats.get(other.id).settings == {"character": "Mira"}
    runs["runs"][0]["settings"] = {"character": "米拉", "mode": "chat"}
    assert (
        store.for_owner("ann").messages.get(reply.id).extra == runs
        and store.for_owner("ann").messages.get(reply.id).content == "Mira"
    )
