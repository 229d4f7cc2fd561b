"""Guessing ahead changes how fast a reply comes, never what it says."""

from __future__ import annotations

from typing import Any

import pytest

from modules.generation.local.model import Limits, LocalModel
from modules.generation.local.speculative import PromptLookupProposer, ProposerGuard
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest
from tests.generation.local.conftest import greedy, tokens_of
from tests.generation.local.test_rows import finished, reply_of, some_prompt


def test_lookup_guesses_what_followed_before() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    lookup = PromptLookupProposer(3)
    assert lookup.propose(tokens) == [4, 5, 6]
    tokens.append(9)
    assert lookup.propose(tokens) == []
    tokens += [2, 3, 9]
    assert lookup.propose(tokens) == [2, 3, 9]
    tokens += [1, 2, 3]
    assert lookup.propose(tokens) == [9, 2, 3]


@pytest.fixture(params=["lookup", "the model itself as draft"])
def guessing(request: pytest.FixtureRequest, tiny_model: Any, tiny_tokenizer: Any) -> Any:
    draft = tiny_model() if request.param != "lookup" else None
    model = LocalModel("tiny", tiny_model(), tiny_tokenizer, Limits(cache_bytes=1 << 28, prompt_lookup=4), draft=draft)
    passes: list[int] = []
    real = model._runner.logits

    def counted(pieces: Any, tokens: Any, keep: Any, embeds: Any = ()) -> Any:
        passes.append(len(tokens))
        return real(pieces, tokens, keep, embeds)

    model._runner.logits = counted
    yield model, passes
    model.close()


def test_greedy_text_is_the_same_in_fewer_passes(guessing: Any, generate: Any) -> None:
    model, passes = guessing
    prompt = some_prompt(12) * 5
    reply = tokens_of(model.stream(greedy(prompt, 120)))
    assert reply == reply_of(generate(prompt, 120))
    assert len(passes) < len(reply)
    # What was guessed wrongly is not in the cache: the next turn reads on from the right place.
    longer = prompt + reply + some_prompt(9, 1)
    assert tokens_of(model.stream(greedy(longer, 20))) == reply_of(generate(longer, 20))


def test_drawn_text_is_the_same_as_without_guessing(guessing: Any, make_local: Any) -> None:
    model, passes = guessing
    prompt = tuple(some_prompt(12) * 5)
    sampling = SamplingParams(seed=3, temperature=0.02, max_tokens=80)
    request = GenerationRequest(prompt, sampling, logprobs=0)
    plain = tokens_of(make_local().stream(request))
    assert tokens_of(model.stream(request)) == plain
    assert any(count > 1 for count in passes[1:])


def test_a_reply_does_not_overrun_its_length(guessing: Any) -> None:
    model, _ = guessing
    for count in (1, 2, 3, 17):
        assert finished(list(model.stream(greedy(some_prompt(12) * 5, count)))).usage.completion_tokens == count


def test_a_guesser_that_fails_is_given_up_and_the_reply_goes_on(make_local: Any, generate: Any) -> None:
    class Broken:
        asked = 0

        def propose(self, tokens: list[int]) -> list[int]:
            self.asked += 1
            raise RuntimeError("no idea")

    model, broken, prompt = make_local(), Broken(), some_prompt(12)
    model._loop._scheduler._proposer = ProposerGuard(broken)
    assert tokens_of(model.stream(greedy(prompt, 20))) == reply_of(generate(prompt, 20))
    assert broken.asked == 1
