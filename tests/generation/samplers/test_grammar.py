"""Replies of a given form: nothing else comes, and a mistake in the form is named."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from modules.errors import UserError
from modules.generation.samplers.batch_sampler import SequenceSampler, choose, remaining
from modules.generation.samplers.candidates import NEG_INF
from modules.generation.samplers.vocabulary import Vocabulary
from modules.generation.sampling import SamplingParams
from modules.generation.structured_output.lark import as_lark
from modules.generation.structured_output.process import Trials
from tests.generation.samplers.conftest import MakeRow

PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "maximum": 130}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
GBNF = r"""
root  ::= answer ("\n" answer)?   # one or two
answer ::= "yes" | "no" | [\u00e9\u0041]{2} | "\U0001F600" | "a/b" [/]
"""
LARK = """start: WORD (" " WORD)*
WORD: /[a-z]{1,3}/
"""


def say(sampler: SequenceSampler, vocabulary: Vocabulary, *, seed: int = 0, longest: int = 400) -> bytes:
    """What a model that wants anything but to end says under `sampler`, until the grammar is complete."""
    said, random = b"", torch.Generator().manual_seed(seed)
    for _ in range(longest):
        logits = torch.randn(1, 260, generator=random)
        token = int(choose(logits, [sampler], logprobs=[None]).tokens)
        sampler.accept(token)
        if token in vocabulary.eos:
            break
        said += vocabulary.bytes_of(token)
        if sampler.finished:
            break
    return said


@pytest.mark.parametrize("seed", range(5))
def test_a_json_schema_is_followed(seed: int, row: MakeRow, vocabulary: Vocabulary) -> None:
    got = json.loads(say(row(json_schema=PERSON, seed=seed), vocabulary, seed=seed))
    assert set(got) == {"name", "age"}
    assert isinstance(got["name"], str) and isinstance(got["age"], int)


def test_an_empty_schema_allows_any_json_and_nothing_else(row: MakeRow, vocabulary: Vocabulary) -> None:
    for seed in range(10):
        sampler = row(json_schema="{}", seed=seed)
        text = say(sampler, vocabulary, seed=seed, longest=2000)
        if sampler.finished:
            json.loads(text)
    allowed = (remaining(torch.zeros(1, 260), [row(json_schema="{}")]) > NEG_INF)[0].nonzero()[:, 0].tolist()
    assert {vocabulary.bytes_of(token) for token in allowed} >= {b"{", b"[", b'"', b"t", b"f", b"n", b"-", b"0"}
    assert b"x" not in {vocabulary.bytes_of(token) for token in allowed}


@pytest.mark.parametrize("seed", range(5))
def test_a_regular_expression_is_followed(seed: int, row: MakeRow, vocabulary: Vocabulary) -> None:
    pattern = r"\d{3}-[a-f/]{2,4}(é|ü)\."
    assert re.fullmatch(pattern, say(row(regex=pattern, seed=seed), vocabulary, seed=seed).decode())


@pytest.mark.parametrize("seed", range(8))
def test_gbnf_is_followed(seed: int, row: MakeRow, vocabulary: Vocabulary) -> None:
    answer = "(yes|no|[éA]{2}|\U0001f600|a/b/)"
    text = say(row(grammar=GBNF, seed=seed), vocabulary, seed=seed).decode()
    assert re.fullmatch(rf"{answer}(\n{answer})?", text)


@pytest.mark.parametrize("seed", range(3))
def test_lark_is_followed(seed: int, row: MakeRow, vocabulary: Vocabulary) -> None:
    text = say(row(grammar=LARK, seed=seed), vocabulary, seed=seed).decode()
    assert re.fullmatch(r"[a-z]{1,3}( [a-z]{1,3})*", text)


def test_only_the_end_may_follow_a_complete_reply_even_where_the_end_is_banned(row: MakeRow, vocabulary: Vocabulary) -> None:
    sampler = row(grammar='root ::= "a"', ban_eos=True, min_tokens=5)
    assert not sampler.finished
    assert vocabulary.bytes_of(int(choose(torch.zeros(1, 260), [sampler], logprobs=[None]).tokens)) == b"a"
    sampler.accept(vocabulary.bytes.index(b"a"))
    assert sampler.finished
    left = remaining(torch.zeros(1, 260), [sampler])
    assert (left > NEG_INF)[0].nonzero()[:, 0].tolist() == [*vocabulary.eos]


def test_a_grammar_and_bans_that_leave_nothing_are_an_error(row: MakeRow, vocabulary: Vocabulary) -> None:
    sampler = row(grammar='root ::= "a"', banned_strings=("a",))
    token = int(choose(torch.zeros(1, 260), [sampler], logprobs=[None]).tokens)
    with pytest.raises(UserError, match="No token can be chosen"):
        sampler.accept(token)


def test_a_token_against_the_grammar_is_an_error(row: MakeRow, vocabulary: Vocabulary) -> None:
    with pytest.raises(UserError, match="grammar"):
        row(grammar='root ::= "a"').accept(vocabulary.bytes.index(b"b"))


@pytest.mark.parametrize(
    ("sampling", "message", "field"),
    [
        ({"grammar": 'start: "a"\nfoo: ['}, "line 2: Expected token ']'", "grammar"),
        ({"grammar": '\nstart: "a" | foo\n'}, 'line 2: unknown name: "foo"', "grammar"),
        ({"grammar": "%llguidance {}\nstart: /a(/\n"}, "line 2: .*unclosed group", "grammar"),
        ({"grammar": 'root ::= "a"\nb ::= "x" | foo'}, "in line 2: Rule 'foo' not found", "grammar"),
        ({"grammar": 'root ::= "a"\n\nb = "x"'}, "Expected ::= at line 3", "grammar"),
        ({"grammar": "root ::= [\\q]"}, "Invalid escape sequence .* line 1", "grammar"),
        ({"grammar": 'b ::= "a"'}, "No 'root' rule", "grammar"),
        ({"grammar": "I would like a poem"}, "line 1", "grammar"),
        ({"regex": "a(b"}, "regular expression .* unclosed group", "regex"),
        ({"regex": "a(?=b)"}, "look-around", "regex"),
        ({"json_schema": '{"type":\n "string",}'}, "line 2, column", "json_schema"),
        ({"json_schema": '{"type": "strange"}'}, "at type: Invalid type: strange", "json_schema.type"),
        ({"json_schema": '{"not": {}}'}, 'at not: Unimplemented keys: \\["not"\\]', "json_schema.not"),
    ],
)
def test_a_mistake_is_named(sampling: dict[str, Any], message: str, field: str, row: MakeRow) -> None:
    with pytest.raises(UserError, match=message) as raised:
        row(**sampling)
    assert raised.value.param == field
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("sampling", [{"grammar": GBNF}, {"grammar": LARK}, {"regex": "a/b|[0-9]+"}, {"json_schema": PERSON}])
def test_every_form_becomes_a_grammar_that_llama_cpp_gives_to_its_llguidance(sampling: dict[str, str]) -> None:
    ((field, text),) = sampling.items()
    assert as_lark(field, text)[0].startswith("%llguidance")


def test_a_free_reply_has_no_form(trials: Trials) -> None:
    assert trials.form(SamplingParams()) is None
