"""Contrastive search: the tokens that whole passes through the model alone would choose, whatever runs beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from modules.generation.local.model import Limits, LocalModel
from modules.generation.samplers.contrastive import MAX_CANDIDATES
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest
from tests.generation.local.conftest import generated, greedy, tokens_of
from tests.generation.local.test_kinds import ENDS, random_model
from tests.generation.local.test_rows import finished, reply_of, some_prompt

pytestmark = pytest.mark.slow

ALPHA, TOP_K = 0.6, 4


def searched(model: Any, prompt: list[int], count: int, penalty: float = 1.0) -> list[int]:
    """By the definition: every candidate behind the whole text, in a pass of its own."""
    text = list(prompt)

    def passed(tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(torch.tensor([tokens]), output_hidden_states=True, use_cache=False)
        return output.logits[0, -1], torch.nn.functional.normalize(output.hidden_states[-1][0], dim=-1)

    with torch.inference_mode():
        for _ in range(count):
            scores, states = passed(text)
            seen = torch.tensor(sorted(set(text)))
            scores[seen] = torch.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
            best = torch.softmax(scores, -1).topk(TOP_K)
            likeness = [(states @ passed([*text, token])[1][-1]).max() for token in best.indices.tolist()]
            text.append(int(best.indices[((1 - ALPHA) * best.values - ALPHA * torch.stack(likeness)).argmax()]))
            if text[-1] == ENDS["eos_token_id"]:
                break
    return reply_of(text[len(prompt) :])


def contrastive(prompt: list[int], count: int, **more: Any) -> GenerationRequest:
    sampling = SamplingParams(do_sample=False, max_tokens=count, top_k=TOP_K, penalty_alpha=ALPHA, **more)
    return GenerationRequest(tuple(prompt), sampling, logprobs=2)


@pytest.fixture
def make_kind(tiny_tokenizer: Any) -> Iterator[Callable[[str], tuple[LocalModel, Any]]]:
    """Makes an engine over one of KINDS, and the same model for transformers."""
    made: list[LocalModel] = []

    def make(kind: str) -> tuple[LocalModel, Any]:
        limits = Limits(cache_bytes=1 << 28, prefill_chunk=16, context_length=1024, max_parallel=4)
        made.append(LocalModel(kind, random_model(kind), tiny_tokenizer, limits))
        return made[-1], random_model(kind)

    yield make
    for model in made:
        model.close()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt-2", "gemma2 with windows and bounded scores"])
@pytest.mark.filterwarnings("ignore")
def test_every_kind_gives_what_whole_passes_give(kind: str, make_kind) -> None:
    model, reference = make_kind(kind)
    prompts = [some_prompt(length, length) for length in (5, 70)]
    other = some_prompt(33, 1)
    beside = model.stream(greedy(other, 30))
    found = [tokens_of(stream) for stream in [model.stream(contrastive(prompt, 12)) for prompt in prompts]]
    assert found == [searched(reference, prompt, 12) for prompt in prompts]
    assert tokens_of(beside) == reply_of(generated(reference, other, 30))


def test_penalties_act_before_the_candidates_are_chosen(make_kind) -> None:
    model, reference = make_kind("llama")
    prompt = some_prompt(40)
    found = tokens_of(model.stream(contrastive(prompt, 12, repetition_penalty=1.5)))
    assert found == searched(reference, prompt, 12, penalty=1.5) != searched(reference, prompt, 12)


def test_the_next_turn_reads_all_again_and_is_right_and_others_may_go_on_from_it(make_local, tiny_model, generate) -> None:
    model, reference = make_local(), tiny_model()
    prompt = some_prompt(60)
    reply = tokens_of(model.stream(contrastive(prompt, 10)))
    assert reply == searched(reference, prompt, 10) != reply_of(generate(prompt, 10))
    turn = prompt + reply + some_prompt(5, 1)
    events = list(model.stream(contrastive(turn, 10)))
    assert tokens_of(events) == searched(reference, turn, 10)
    assert finished(events).usage.cached_tokens == 0
    events = list(model.stream(greedy(turn, 10)))
    assert tokens_of(events) == reply_of(generate(turn, 10))
    assert finished(events).usage.cached_tokens == len(turn) - 1


def test_a_slot_that_is_full_grows_before_a_candidate_is_tried(make_local) -> None:
    # A new slot has room for 256 tokens beyond its prompt, rounded up to a multiple of 256.
    model, prompt = make_local(), some_prompt(1)
    request = contrastive(prompt, 520, ban_eos=True)
    tokens = tokens_of(model.stream(request))
    assert len(tokens) == 520
    ends = [*prompt, *tokens[:515]]
    assert tokens_of(model.stream(contrastive(ends, 5, ban_eos=True))) == tokens[515:]


def test_probabilities_are_those_of_the_model_and_the_plot_shows_what_is_tried(make_local, tiny_model) -> None:
    model, prompt = make_local(), some_prompt(40)
    with torch.inference_mode():
        truth = torch.log_softmax(tiny_model()(torch.tensor([prompt])).logits[0, -1], -1)
    token = next(token for event in model.stream(contrastive(prompt, 1)) for token in getattr(event, "details", ()))
    assert token.logprob == pytest.approx(float(truth[token.id]), abs=1e-4)
    assert [other.id for other in token.alternatives] == truth.topk(2).indices.tolist()
    left = model.next_tokens(contrastive(prompt, 100), 300).left
    assert [other.id for other in left] == truth.topk(TOP_K).indices.tolist()
    many = SamplingParams(do_sample=False, top_k=200, penalty_alpha=0.1)
    assert len(model.next_tokens(GenerationRequest(tuple(prompt), many), 300).left) == MAX_CANDIDATES


def test_a_grammar_leaves_what_it_allows(make_local) -> None:
    sampling = SamplingParams(do_sample=False, top_k=8, penalty_alpha=ALPHA, max_tokens=20, regex="(ab|cd){4}")
    events = list(make_local().stream(GenerationRequest("go", sampling)))
    text = "".join(event.text for event in events if hasattr(event, "text"))
    assert len(text) == 8 and not text.replace("ab", "").replace("cd", "")


@pytest.mark.parametrize("more", [{"do_sample": True, "seed": 3}, {"top_k": 1}, {"penalty_alpha": 0.0}])
def test_without_greed_candidates_or_strength_it_is_off(make_local, more: dict[str, Any]) -> None:
    values = {"do_sample": False, "top_k": TOP_K, "penalty_alpha": ALPHA, "max_tokens": 20, **more}
    model, prompt = make_local(), tuple(some_prompt(30))
    with_it, without = (
        tokens_of(model.stream(GenerationRequest(prompt, SamplingParams(**sampling), logprobs=0)))
        for sampling in (values, {**values, "penalty_alpha": 0.0})
    )
    assert with_it == without


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_runs_alone_says_that_it_has_none(make_kind) -> None:
    model, _ = make_kind("mamba")
    assert "penalty_alpha" not in model.capabilities.samplers
    prompt = some_prompt(20)
    assert tokens_of(model.stream(contrastive(prompt, 8))) == tokens_of(model.stream(greedy(prompt, 8)))
