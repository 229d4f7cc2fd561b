"""What looks back at the text: penalties, n-grams, DRY, banned texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor
from transformers import (
    EncoderRepetitionPenaltyLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from modules.generation.samplers.batch_sampler import choose, remaining
from modules.generation.samplers.candidates import NEG_INF
from modules.generation.samplers.dry import dry_penalties
from modules.generation.samplers.history import Counts, SequenceBreakers
from modules.generation.samplers.penalties import ends_of_repeated_ngrams
from modules.generation.samplers.vocabulary import Vocabulary
from tests.generation.samplers.conftest import MakeRow

PROMPT = [1, 2, 3, 1, 2]
REPLY = [3, 4, 1, 2, 3]
Tokens = some.lists(some.integers(0, 3), max_size=30)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(1, 260, generator=torch.Generator().manual_seed(0))


def as_ids(tokens: list[int]) -> Any:
    return torch.tensor([tokens], dtype=torch.int64)


def after_reply(row: MakeRow, logits: Tensor, **sampling: Any) -> Tensor:
    sampler = row(PROMPT, **sampling)
    for token in REPLY:
        sampler.accept(token)
    return remaining(logits, [sampler])


def test_the_repetition_penalty_is_that_of_transformers(row: MakeRow, logits: Tensor) -> None:
    expected = RepetitionPenaltyLogitsProcessor(1.3)(as_ids(PROMPT + REPLY), logits)
    assert torch.equal(after_reply(row, logits, repetition_penalty=1.3), expected)


def test_its_range_looks_at_the_last_tokens_only(row: MakeRow, logits: Tensor) -> None:
    expected = RepetitionPenaltyLogitsProcessor(1.3)(as_ids(REPLY[-2:]), logits)
    assert torch.equal(after_reply(row, logits, repetition_penalty=1.3, repetition_penalty_range=2), expected)


def test_the_encoder_repetition_penalty_is_that_of_transformers(row: MakeRow, logits: Tensor) -> None:
    expected = EncoderRepetitionPenaltyLogitsProcessor(1.3, as_ids(PROMPT))(as_ids(PROMPT), logits)
    assert torch.allclose(after_reply(row, logits, encoder_repetition_penalty=1.3), expected)


def test_frequency_and_presence_count_the_reply_alone(row: MakeRow, logits: Tensor) -> None:
    got = after_reply(row, logits, frequency_penalty=0.5, presence_penalty=0.25) - logits
    expected = torch.zeros(260)
    expected[[1, 2, 4]] = -0.75
    expected[3] = -1.25
    assert torch.allclose(got[0], expected, atol=1e-6)
    within = after_reply(row, logits, frequency_penalty=0.5, repetition_penalty_range=2) - logits
    assert within[0, [1, 2, 3, 4]].tolist() == pytest.approx([0, -0.5, -0.5, 0], abs=1e-6)
    wide = after_reply(row, logits, frequency_penalty=0.5, repetition_penalty_range=8) - logits
    assert wide[0, [1, 2, 3, 4]].tolist() == pytest.approx([-0.5, -0.5, -1, -0.5], abs=1e-6)


@given(tokens=Tokens, size=some.integers(1, 5))
def test_ngrams_are_banned_as_in_transformers(tokens: list[int], size: int) -> None:
    expected = NoRepeatNGramLogitsProcessor(size)(as_ids(tokens), torch.zeros(1, 8))
    got = torch.zeros(1, 8)
    got[0, ends_of_repeated_ngrams(np.array(tokens, dtype=np.int64), size)] = NEG_INF
    assert torch.equal(got, expected)


@given(tokens=Tokens, marks=some.lists(some.booleans(), min_size=30, max_size=30), allowed=some.integers(1, 4))
def test_dry_penalises_the_longest_run_that_a_token_would_extend(tokens: list[int], marks: list[bool], allowed: int) -> None:
    breaks = [mark and index % 3 == 0 for index, mark in enumerate(marks[: len(tokens)])]
    longest: dict[int, int] = {}
    for follower in range(1, len(tokens)):
        length = 0
        while (
            length < follower and tokens[follower - 1 - length] == tokens[-1 - length] and not breaks[len(tokens) - 1 - length]
        ):
            length += 1
        if length >= allowed and not breaks[follower]:
            longest[tokens[follower]] = max(longest.get(tokens[follower], 0), length)
    ids, amounts = dry_penalties(
        np.array(tokens, dtype=np.int64), np.array(breaks, dtype=bool), multiplier=0.5, base=2.0, allowed_length=allowed
    )
    got = dict(zip(ids.tolist(), amounts.tolist(), strict=True))
    assert got == {token: -0.5 * 2.0 ** (length - allowed) for token, length in longest.items()}


def test_dry_stays_finite_in_an_endless_repetition() -> None:
    tokens = np.zeros(5000, dtype=np.int64)
    ids, amounts = dry_penalties(tokens, np.zeros(5000, dtype=bool), multiplier=5, base=4, allowed_length=2)
    assert ids.tolist() == [0]
    assert np.isfinite(amounts).all() and amounts[0] < -1e20


def test_dry_keeps_a_model_from_saying_it_again(row: MakeRow) -> None:
    text = list(b"once upon a time. once upon a ti")
    sampler = row([token_of(byte) for byte in text], dry_multiplier=1.0, temperature=0)
    wanted = torch.zeros(1, 260)
    wanted[0, token_of(ord("m"))] = 5
    assert choose(wanted, [sampler], logprobs=[None]).tokens.item() != token_of(ord("m"))
    broken = row([token_of(byte) for byte in text], dry_multiplier=1.0, temperature=0, dry_sequence_breakers=("i",))
    assert choose(wanted, [broken], logprobs=[None]).tokens.item() == token_of(ord("m"))


def token_of(byte: int) -> int:
    """The id of one printable byte in the tests' vocabulary, which is in the order of its letters."""
    return byte - ord("!") if byte != ord(" ") else 220


@given(text=some.text("ab:\n", max_size=20), breakers=some.lists(some.text("ab:\n", min_size=1, max_size=3), max_size=3))
def test_breaks_grow_token_by_token_as_they_are_found_in_the_whole(text: str, breakers: list[str]) -> None:
    class Pieces:
        def bytes_of(self, token: int) -> bytes:
            return [b"a", b"b", b":", b"\n", b"ab", b""][token]

    tokens = ["ab:\n".index(letter) for letter in text] + [5, 4, 4]
    whole = SequenceBreakers(breakers, tokens, Pieces())  # type: ignore[arg-type]
    grown = SequenceBreakers(breakers, tokens[:3], Pieces())  # type: ignore[arg-type]
    for token in tokens[3:]:
        grown.add(token)
    assert grown.at.tolist() == whole.at.tolist()
    assert whole.at.tolist()[len(text)]
    seen = ""
    for place, letter in enumerate(text):
        seen += letter
        assert whole.at[place] == any(seen.endswith(breaker) for breaker in breakers)


@given(tokens=some.lists(some.integers(0, 5)), more=some.lists(some.integers(0, 9), max_size=600))
def test_counts_are_those_of_the_whole_text(tokens: list[int], more: list[int]) -> None:
    counts = Counts(np.array(tokens, dtype=np.int64))
    for token in more:
        counts.add(token)
    got = dict(zip(counts.ids.tolist(), counts.numbers.tolist(), strict=True))
    assert got == {token: (tokens + more).count(token) for token in {*tokens, *more}}


def test_a_banned_text_never_comes_however_it_is_cut(row: MakeRow, vocabulary: Vocabulary) -> None:
    logits = torch.full((1, 260), NEG_INF)
    letters = [token_of(ord(letter)) for letter in "abc"]
    logits[0, letters] = 0

    def reply(**sampling: Any) -> bytes:
        sampler = row(seed=3, **sampling)
        said = b""
        for _ in range(300):
            token = int(choose(logits, [sampler], logprobs=[None]).tokens)
            sampler.accept(token)
            said += vocabulary.bytes_of(token)
        return said

    assert b"abca" in reply() and b"cc" in reply()
    banned = reply(banned_strings=("abca", "cc"))
    assert b"abca" not in banned and b"cc" not in banned
    assert b"abc" in banned


def test_longer_tokens_are_searched_for_the_text(tokenizer: Any) -> None:
    words = Vocabulary(tokenizer)
    words.bytes = [b"", b"the", b" the", b"there", b"he", b"e", b"xthey"]
    assert words.containing(b"the").tolist() == [1, 2, 3, 6]
    assert sorted(words.starting_with(b"he").tolist()) == [4]
    assert sorted(words.starting_with(b"the").tolist()) == [1, 3]
    assert words.bytes_of(99) == b""
