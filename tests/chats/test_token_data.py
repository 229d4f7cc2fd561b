"""Tokens in few bytes, and where they stand in the text that was shown."""

from __future__ import annotations

import pytest

from modules.chats.token_data import Places, pack, unpack
from modules.generation.types import Token, TokenAlternative


def test_what_is_packed_comes_back_in_few_bytes():
    tokens = tuple(
        Token(
            at,
            f"word{at % 97}",
            -at / 100,
            tuple(TokenAlternative(at + k, f" other{(at + k) % 89}", -k * 1.25) for k in range(8)),
        )
        for at in range(2000)
    )
    data = pack(tokens)
    assert len(data) < 60 * len(tokens)
    back = unpack(data)
    assert [token.id for token in back] == [token.id for token in tokens]
    assert all(abs((a.logprob or 0) - (b.logprob or 0)) < 0.01 for a, b in zip(back, tokens, strict=True))
    assert [other.text for other in back[5].alternatives] == [other.text for other in tokens[5].alternatives]


def test_odd_texts_and_unknown_probabilities_survive():
    tokens = (Token(1, "\ufffd"), Token(2, "", -70_000.0), Token(3, "\n\t“你”"))
    back = unpack(pack(tokens))
    assert [(token.id, token.text) for token in back] == [(1, "\ufffd"), (2, ""), (3, "\n\t“你”")]
    assert back[0].logprob is None and back[1].logprob == -60_000.0


def test_engines_that_tell_no_ids_keep_their_texts():
    tokens = (Token(-1, "one", -1.0, (TokenAlternative(-1, "two", -1.5),)), Token(-1, " three", -0.5))
    assert unpack(pack(tokens)) == tokens


def pieces(content: str, *texts: str, at: int = 0) -> list[str]:
    places = Places(at)
    places.feed([Token(0, text) for text in texts], content, last=True)
    begins = [at, *places.ends[:-1]]
    return [content[begin:end] for begin, end in zip(begins, places.ends, strict=True)]


@pytest.mark.parametrize(
    ("content", "texts", "expected"),
    [
        ("The sky.", ["The", " sky", "."], ["The", " sky", "."]),
        ("The sky.", ["The", "sky", "."], ["The", " sky", "."]),
        ("a 你好!", ["a", " \ufffd", "\ufffd", "好", "!"], ["a", "", " 你", "好", "!"]),
        ("你", ["\ufffd", "\ufffd", "\ufffd"], ["", "", "你"]),
        ("The end", ["The", " end", "<|im_end|>"], ["The", " end", ""]),
        ("one two", ["one", "<mark>", " two"], ["one", "", " two"]),
        ("cut he", ["cut", " here", " STOP"], ["cut", "", ""]),
    ],
)
def test_tokens_are_found_in_the_text(content: str, texts: list[str], expected: list[str]):
    assert pieces(content, *texts) == expected


def test_a_token_waits_until_its_text_has_come():
    places = Places()
    places.feed([Token(0, "one"), Token(0, " two")], "one", last=False)
    assert places.ends == [3]
    places.feed([Token(0, " two")], "one two", last=False)
    assert places.ends == [3, 7]
