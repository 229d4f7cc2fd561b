"""What happens to a conversation or text that is longer than the context."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.errors import ContextTooLong
from modules.generation.context_overflow import fit_messages, fit_tokens, room_for_prompt
from modules.generation.types import Message, Messages, Role


def talk(*turns: tuple[Role, int]) -> Messages:
    return tuple(Message(role, "x" * length) for role, length in turns)


def letters(messages: Messages) -> int:
    return sum(len(message.content) for message in messages)


def test_a_conversation_that_fits_stays_whole() -> None:
    messages = talk(("system", 5), ("user", 10), ("assistant", 10), ("user", 10))
    assert fit_messages(messages, letters, 100, 50, "drop_oldest") == (messages, 0)
    assert fit_messages(messages, letters, 100, 50, "refuse") == (messages, 0)


def test_the_oldest_turns_go_first_and_the_system_prompt_stays() -> None:
    messages = talk(("system", 5), ("user", 30), ("assistant", 30), ("user", 31), ("assistant", 10), ("user", 12))
    kept, dropped = fit_messages(messages, letters, 80, 10, "drop_oldest")
    assert kept == messages[:1] + messages[3:]
    assert dropped == 2


def test_a_turn_goes_whole_with_what_tools_answered() -> None:
    messages = talk(("user", 30), ("assistant", 5), ("tool", 30), ("assistant", 5), ("user", 10), ("assistant", 5), ("user", 5))
    kept, dropped = fit_messages(messages, letters, 60, 10, "drop_oldest")
    assert (kept, dropped) == (messages[4:], 4)


def test_a_last_turn_that_takes_the_room_of_the_reply_is_still_answered() -> None:
    messages = talk(("user", 30), ("assistant", 30), ("user", 90))
    assert fit_messages(messages, letters, 100, 50, "drop_oldest") == (messages[2:], 2)


@pytest.mark.parametrize("overflow", ["refuse", "drop_oldest"])
def test_a_last_turn_longer_than_the_context_is_refused_with_the_figures(overflow) -> None:
    with pytest.raises(ContextTooLong, match=r"120 tokens.* 100 "):
        fit_messages(talk(("user", 120)), letters, 100, 10, overflow)


def test_refusing_is_for_prompts_that_leave_no_room_at_all() -> None:
    fit_messages(talk(("user", 99)), letters, 100, 500, "refuse")
    with pytest.raises(ContextTooLong):
        fit_messages(talk(("user", 100)), letters, 100, 1, "refuse")


def test_of_a_text_the_end_stays_and_its_first_token() -> None:
    tokens = list(range(100))
    kept = fit_tokens(tokens, 60, 10, "drop_oldest", keep_first=1)
    assert kept == [0, *range(51, 100)]
    assert fit_tokens(tokens, 200, 10, "drop_oldest") == tokens
    with pytest.raises(ContextTooLong, match=r"100 tokens.* 60 "):
        fit_tokens(tokens, 60, 10, "refuse")


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    context=st.integers(16, 200),
    max_tokens=st.integers(1, 300),
)
def test_no_more_is_left_out_than_must_be(lengths: list[int], context: int, max_tokens: int) -> None:
    roles: tuple[Role, Role] = ("user", "assistant")
    turns: list[tuple[Role, int]] = [(roles[at % 2], length) for at, length in enumerate(lengths)]
    messages = talk(*turns)
    try:
        kept, dropped = fit_messages(messages, letters, context, max_tokens, "drop_oldest")
    except ContextTooLong:
        last_user = max(at for at, message in enumerate(messages) if message.role == "user")
        assert letters(messages[last_user:]) >= context
        return
    assert kept == messages[dropped:]
    assert letters(kept) < context
    if dropped >= 2:
        assert letters(messages[dropped - 2 :]) > room_for_prompt(context, max_tokens)
