"""The process that tries forms of replies, and what it finds out."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.structured_output.builtin import Library
from modules.generation.structured_output.process import Trials
from modules.generation.structured_output.schema import place_of_fault, prepare
from modules.generation.structured_output.size import shortest
from modules.generation.structured_output.trial import Asked, try_form

ENGINES: tuple[Literal["transformers", "llama.cpp"], ...] = ("transformers", "llama.cpp")


@pytest.fixture(scope="module", params=ENGINES)
def trials(request: pytest.FixtureRequest) -> Iterator[Trials]:
    trials = Trials(request.param, lambda text: ["<|im_end|>"])
    yield trials
    trials.close()


def test_a_form_that_can_be_used_comes_back_as_a_grammar(trials: Trials) -> None:
    form = trials.form(SamplingParams(regex="a+"))
    assert form is not None and form.lark.startswith("%llguidance")
    assert trials.form(SamplingParams()) is None


def test_many_at_once_are_all_answered(trials: Trials) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        form = trials.form(SamplingParams(regex=f"{number}+"))
        found[number] = form.lark if form is not None else ""

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(f"/{number}+/" in found[number] for number in range(16))


def test_the_process_ends_with_its_owner_and_is_started_again(trials: Trials) -> None:
    trials.form(SamplingParams(regex="a"))
    process = trials._process
    assert process is not None and process.poll() is None
    trials.close()
    trials.close()
    assert process.poll() == 0
    assert trials.form(SamplingParams(regex="a")) is not None


def test_a_control_token_that_only_the_text_of_a_schema_spells_is_no_token(trials: Trials) -> None:
    assert trials.form(SamplingParams(json_schema='{"const": "<|im_end|>"}')) is not None
    assert trials.form(SamplingParams(grammar='start: "a" <|im_end|>')) is not None
    with pytest.raises(UserError, match="other"):
        trials.form(SamplingParams(grammar='start: "a" <|other|>'))


def test_a_reply_is_followed_to_its_end() -> None:
    trials = Trials("llama.cpp", lambda text: ["<|im_end|>"])
    ways: list[tuple[str, list[tuple[list[Any], bool, bool]]]] = [
        ("ab+", [(["a"], False, True), (["b", "b"], False, True), ([], True, True)]),
        ("ab+", [(["a"], False, True), ([], True, False)]),
        ("ab+", [(["a"], False, True), (["c"], False, False)]),
        ("é你+", [(["é", "你你"], False, True), ([], True, True)]),
    ]
    for regex, steps in ways:
        follower = trials.follower(SamplingParams(regex=regex))
        assert follower is not None
        for pieces, last, fits in steps:
            assert follower.fits(pieces, last=last) is fits
        follower.close()
    follower = trials.follower(SamplingParams(grammar='start: "a" <|im_end|> "b"'))
    assert follower is not None and follower.special == ("<|im_end|>",)
    assert follower.fits(["a", {"token": "<|im_end|>"}, "b"], last=True)
    follower.close()
    assert not follower.fits(["b"])
    trials.close()


def test_what_only_the_llguidance_inside_llama_cpp_unfolds_is_refused_for_it_alone() -> None:
    many = SamplingParams(json_schema=json.dumps({"type": "array", "items": {"type": "null"}, "maxItems": 100_000}))
    ours, theirs = Trials("transformers", lambda text: ()), Trials("llama.cpp", lambda text: ())
    assert ours.form(many) is not None
    with pytest.raises(UserError, match="unfolds"):
        theirs.form(many)
    ours.close()
    theirs.close()


def test_tokens_by_number_are_left_to_our_own_engine() -> None:
    numbered = SamplingParams(grammar='start: <[3]> "a"')
    ours, theirs = Trials("transformers", lambda text: ()), Trials("llama.cpp", lambda text: ())
    assert ours.form(numbered) is not None
    with pytest.raises(UserError, match="number"):
        theirs.form(numbered)
    ours.close()
    theirs.close()


# --- the parts


@pytest.mark.parametrize(
    ("lark", "least"),
    [
        ('start: ""', 0),
        ('start: "a" | "b" "c" "d"', 1),
        ("start: a{3} a?\na: /b/ /c/", 6),
        ("start: a+\na: /b/ a | /c/ /d/", 2),
        ('start: "x" start', float("inf")),
        ('start: foo::0x0 "b"\nfoo::_: "a" foo::incr(_) %if lt(_,3) | ""', 1),
    ],
)
def test_the_shortest_reply_is_read_from_the_log_of_the_library(lark: str, least: float) -> None:
    from modules.generation.structured_output.trial import _compiled, _guide

    problem, log, _ = _compiled(lark, _guide(Asked("grammar", lark)))
    assert not problem
    assert shortest(log) == least


def test_both_versions_of_llguidance_take_the_grammar() -> None:
    library = Library()
    for field, text in (
        ("regex", "a|b"),
        ("json_schema", '{"oneOf": [{"type": "null"}]}'),
        ("grammar", 'root ::= [a-c]{2} "d"?'),
    ):
        assert try_form(Asked(field, text), library).lark.startswith("%llguidance")


def test_annotations_go_and_what_is_not_held_is_named() -> None:
    schema = {
        "type": "object",
        "format": "x",
        "properties": {
            "format": {"type": "string", "format": "date", "const": "format"},
            "b": {"anyOf": [{"type": "array", "uniqueItems": True}, {"uniqueItems": True, "maxItems": 1}]},
            "c": {"const": {"format": "kept", "uniqueItems": True}},
        },
        "$defs": {"d": {"items": {"format": "y"}}},
    }
    prepared, ignored = prepare(json.loads(json.dumps(schema)), 10)
    assert sorted(ignored) == ["$defs.d.items.format", "format", "properties.b.anyOf.0.uniqueItems"]
    assert prepared["properties"]["format"] == schema["properties"]["format"]
    assert prepared["properties"]["c"] == schema["properties"]["c"]
    assert prepare(prepared, 10)[1] == ()


def test_the_innermost_part_at_fault_is_found() -> None:
    def fails(part: Any) -> bool:
        return "bad" in json.dumps(part)

    schema = {"allOf": [{"properties": {"a": {"type": "string", "bad": 1}}}], "title": "x"}
    assert place_of_fault(schema, "bad", fails) == "allOf.0.properties.a.bad"
    assert place_of_fault({"type": "bad"}, "", fails) == "type"
    assert place_of_fault(["bad"], "", fails) == ""
