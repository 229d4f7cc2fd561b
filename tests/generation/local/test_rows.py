"""Rows of one batch give what generate() gives for each prompt alone, whatever runs beside them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.errors import ContextTooLong, Unavailable, UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import Finished, GenerationRequest, Message, Prefill, Queued, Started, TextDelta
from modules.library.models import describe
from modules.loaders.choose import load
from modules.loaders.options import LoadOptions
from tests.generation.local.conftest import greedy, tokens_of

EOS = 259


def some_prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=length)


def reply_of(tokens: list[int]) -> list[int]:
    return tokens[:-1] if tokens and tokens[-1] == EOS else tokens


def finished(events: list[Any]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_one_row_gives_what_generate_gives(make_local, generate) -> None:
    prompt = some_prompt(50)
    assert tokens_of(make_local().stream(greedy(prompt, 40))) == reply_of(generate(prompt, 40))


def test_packed_weights_in_float32_give_the_scores_of_the_model_itself(tiny_llama_folder, tiny_tokenizer) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from modules.generation.local.model import Limits, LocalModel

    def single() -> Any:
        return LlamaForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32).eval()

    reference, model = single(), LocalModel("tiny", single(), tiny_tokenizer, Limits(cache_bytes=1 << 26))
    try:
        compute: Any = model._runner
        assert compute.decoder.layers[0].out._packed is not None
        for prompt in (some_prompt(3), some_prompt(70, 1), some_prompt(600, 2)):
            found = model.next_tokens(GenerationRequest(tuple(prompt)), 260)
            with torch.inference_mode():
                truth = torch.log_softmax(reference(torch.tensor([prompt])).logits[0, -1], -1)
            assert [token.logprob for token in found.model] == pytest.approx(
                truth[[t.id for t in found.model]].tolist(), abs=1e-4
            )
    finally:
        model.close()


def test_rows_of_different_lengths_do_not_change_each_other(make_local, generate) -> None:
    model = make_local(prefill_chunk=16)
    prompts = [some_prompt(length, length) for length in (1, 7, 40, 300)]
    streams = [model.stream(greedy(prompt, 30)) for prompt in prompts]
    assert [tokens_of(stream) for stream in streams] == [reply_of(generate(prompt, 30)) for prompt in prompts]


def test_the_next_turn_computes_only_what_is_new(make_local, generate) -> None:
    model = make_local()
    first = some_prompt(200)
    reply = tokens_of(model.stream(greedy(first, 20)))
    second = first + reply + some_prompt(10, 1)
    events = list(model.stream(greedy(second, 20)))
    assert tokens_of(events) == reply_of(generate(second, 20))
    # The last token of the reply was never an input, so its keys and values are not there yet.
    assert finished(events).usage.cached_tokens == len(first + reply) - 1
    assert finished(events).usage.prompt_tokens == len(second)


def test_a_branch_copies_what_a_running_row_has_read(make_local, generate) -> None:
    model = make_local()
    start = some_prompt(300)
    with model.stream(greedy(start, 3000)) as running:
        assert any(isinstance(event, Started) for event in running)
        branch = start[:250] + some_prompt(5, 1)
        events = list(model.stream(greedy(branch, 20)))
    assert finished(events).usage.cached_tokens == 250
    assert tokens_of(events) == reply_of(generate(branch, 20))


def test_replies_to_one_prompt_share_one_prefill(make_local, generate) -> None:
    model = make_local(prefill_chunk=16)
    prompt = some_prompt(400)
    replies = [list(stream) for stream in [model.stream(greedy(prompt, 15)) for _ in range(4)]]
    assert [tokens_of(events) for events in replies] == [reply_of(generate(prompt, 15))] * 4
    assert sorted(finished(events).usage.cached_tokens for events in replies) == [0, 399, 399, 399]


def test_an_idle_sequence_is_not_lost_to_a_short_common_beginning(make_local) -> None:
    model = make_local()
    system, long = some_prompt(40), some_prompt(500, 1)
    list(model.stream(greedy(system + long, 5)))
    list(model.stream(greedy(system + some_prompt(20, 2), 5)))
    again = list(model.stream(greedy(system + long + some_prompt(3, 3), 5)))
    assert finished(again).usage.cached_tokens >= 540


def test_more_requests_than_slots_wait_in_order_and_see_their_place(make_local, generate) -> None:
    model = make_local(max_parallel=1)
    prompts = [some_prompt(20, seed) for seed in range(4)]
    streams = [model.stream(greedy(prompt, 25)) for prompt in prompts]
    events = [list(stream) for stream in streams]
    assert [tokens_of(made) for made in events] == [reply_of(generate(prompt, 25)) for prompt in prompts]
    places = [[event.place for event in made if isinstance(event, Queued)] for made in events]
    assert places[3][-1] == 1 and places[3] == sorted(places[3], reverse=True)
    assert finished(events[3]).timings.queued > finished(events[1]).timings.queued


def test_closing_frees_the_row_for_the_next(make_local) -> None:
    model = make_local(max_parallel=1)
    endless = SamplingParams(max_tokens=3000, ban_eos=True)
    with model.stream(GenerationRequest("go on", endless)) as running:
        waiting = model.stream(greedy(some_prompt(5), 5))
        next(event for event in running if isinstance(event, TextDelta))
    assert isinstance(list(waiting)[-1], Finished)


def test_closing_while_queued_or_reading_leaves_nothing_behind(make_local) -> None:
    model = make_local(max_parallel=1, prefill_chunk=16)
    reading = model.stream(greedy(some_prompt(3000), 5))
    queued = model.stream(greedy(some_prompt(10), 5))
    assert isinstance(next(reading), Prefill)
    queued.close()
    reading.close()
    assert isinstance(list(model.stream(greedy(some_prompt(8), 5)))[-1], Finished)
    status = model.status()
    assert (status.running, status.waiting) == (0, 0)


def test_a_seeded_reply_is_the_same_alone_and_in_company(make_local) -> None:
    model = make_local()
    seeded = GenerationRequest(tuple(some_prompt(30)), SamplingParams(seed=7, max_tokens=60, top_p=0.95), logprobs=0)
    alone = tokens_of(model.stream(seeded))
    company = [model.stream(greedy(some_prompt(length, length), 40)) for length in (5, 90)]
    assert tokens_of(model.stream(seeded)) == alone
    for stream in company:
        stream.close()


@pytest.mark.slow
def test_replies_of_the_starter_in_float32_are_the_same_alone_and_in_company(starter_folder: Path) -> None:
    """Rounding differs with the number of rows; it is far too small to turn the choices of a real model."""
    model = load(describe(starter_folder), LoadOptions(dtype="float32"), lambda progress: None)
    questions = ["Name three rivers.", "Why is the sky blue?", "Write a line about rain.", "Count from one to ten in words."]
    drawn = SamplingParams(seed=7, max_tokens=40, temperature=0.8, top_p=0.95, min_p=0.02, repetition_penalty=1.1)
    exact = SamplingParams(do_sample=False, max_tokens=40)
    requests = [
        GenerationRequest((Message("user", question),), sampling, logprobs=0)
        for question, sampling in zip(questions, [drawn, exact, drawn, exact], strict=True)
    ]
    try:
        alone = [tokens_of(model.stream(request)) for request in requests]
        streams = [model.stream(request) for request in requests]
        assert [tokens_of(stream) for stream in streams] == alone
        assert alone[0] != tokens_of(model.stream(replace(requests[0], sampling=drawn.changed({"seed": 8}))))
    finally:
        model.close()


def test_events_come_in_their_order_and_count_every_token(make_local) -> None:
    events = list(make_local(prefill_chunk=16).stream(greedy(some_prompt(100), 12)))
    kinds = [type(event) for event in events]
    start = kinds.index(Started)
    assert set(kinds[:start]) <= {Queued, Prefill} and set(kinds[start + 1 : -1]) == {TextDelta}
    assert events[start - 1] == Prefill(100, 100)
    end = finished(events)
    made = sum(event.tokens for event in events if isinstance(event, TextDelta))
    assert made == end.usage.completion_tokens == 12 and end.reason == "length"
    assert end.timings.first_token > 0 and end.timings.decode > 0


def test_a_stop_text_ends_the_reply_and_is_not_shown(make_local) -> None:
    model = make_local()
    whole = text_of(list(model.stream(GenerationRequest("abc", SamplingParams(do_sample=False, max_tokens=60)))))
    stop = whole[10:13]
    events = list(model.stream(GenerationRequest("abc", SamplingParams(do_sample=False, max_tokens=60, stop=(stop,)))))
    assert text_of(events) == whole[: whole.index(stop)]
    assert finished(events).reason == "stop" and finished(events).stop_text == stop


def test_the_reply_ends_where_the_context_ends(make_local) -> None:
    events = list(make_local(context_length=40).stream(greedy(some_prompt(30), 500)))
    assert finished(events).usage.completion_tokens == 10 and finished(events).reason == "length"


def test_a_prompt_longer_than_the_context_is_refused_with_the_figures(make_local) -> None:
    with pytest.raises(ContextTooLong, match="50 tokens"):
        make_local(context_length=40).stream(greedy(some_prompt(50), 5))


def test_old_turns_are_dropped_where_that_is_wanted(make_local) -> None:
    model = make_local(context_length=120)
    turns = [Message("user" if index % 2 == 0 else "assistant", f"turn {index} " + "x" * 10) for index in range(9)]
    request = GenerationRequest(tuple(turns), SamplingParams(max_tokens=5), overflow="drop_oldest")
    started = next(event for event in model.stream(request) if isinstance(event, Started))
    assert started.dropped_messages == model.render(request).dropped_messages > 0
    assert "turn 8" in model.render(request).text and "turn 0" not in model.render(request).text


@pytest.mark.parametrize(("ending", "opened"), [("<think>\n", "<think>"), ("<think>\n\n</think>\n\n", ""), ("", "")])
def test_what_thinking_the_template_opens_is_told_at_the_start(make_local, ending: str, opened: str) -> None:
    template = "{{ messages[0]['content'] }} A:" + ending
    request = GenerationRequest((Message("user", "hi"),), SamplingParams(max_tokens=1), template=template)
    assert next(event.opened for event in make_local().stream(request) if isinstance(event, Started)) == opened


def test_a_conversation_needs_a_template(tiny_model, tiny_tokenizer) -> None:
    import copy

    from modules.generation.local.model import Limits, LocalModel

    bare = copy.deepcopy(tiny_tokenizer)
    bare.chat_template = None
    model = LocalModel("bare", tiny_model(), bare, Limits(cache_bytes=1 << 26))
    try:
        with pytest.raises(UserError, match="no chat template"):
            model.stream(GenerationRequest((Message("user", "hi"),)))
        request = GenerationRequest((Message("user", "hi"),), template="Q: {{ messages[0]['content'] }} A:")
        assert model.render(request).text == "Q: hi A:"
    finally:
        model.close()


def test_prompt_and_reply_report_log_probabilities(make_local, tiny_model) -> None:
    import torch

    prompt = some_prompt(40)
    events = list(
        make_local(prefill_chunk=16).stream(GenerationRequest(tuple(prompt), greedy(prompt, 6).sampling, logprobs=3, echo=True))
    )
    started = next(event for event in events if isinstance(event, Started))
    reply = [token for event in events if isinstance(event, TextDelta) for token in event.details]
    whole = [*prompt, *(token.id for token in reply)]
    with torch.inference_mode():
        truth = torch.log_softmax(tiny_model()(torch.tensor([whole])).logits[0].float(), -1)
    assert [token.id for token in started.prompt] == prompt and started.prompt[0].logprob is None
    for place, token in list(enumerate([*started.prompt, *reply]))[1:]:
        assert token.logprob == pytest.approx(float(truth[place - 1, token.id]), abs=1e-4)
        assert [other.id for other in token.alternatives] == truth[place - 1].topk(3).indices.tolist()


def test_a_mistake_in_one_row_ends_that_row_only(make_local, generate, monkeypatch) -> None:
    model = make_local()
    prompt = some_prompt(30)
    said = generate(prompt, 30)
    poison = next(token for token in range(60, 250) if token not in [*prompt, *said])
    real = model._runner.logits

    def failing(pieces, tokens, *rest):
        if poison in tokens:
            raise RuntimeError("a broken row")
        return real(pieces, tokens, *rest)

    monkeypatch.setattr(model._runner, "logits", failing)
    good = model.stream(greedy(prompt, 30))
    bad = model.stream(greedy([poison] * 40, 30))
    with pytest.raises(Unavailable, match="a broken row"):
        list(bad)
    assert tokens_of(good) == reply_of(said)
    assert model.status().running == 0


def test_a_sampler_that_cannot_be_made_refuses_the_request(make_local) -> None:
    with pytest.raises(UserError, match="no token 9999"):
        make_local().stream(GenerationRequest("x", SamplingParams(banned_tokens=(9999,))))


def test_out_of_memory_gives_up_idle_sequences_and_goes_on(make_local, generate, monkeypatch) -> None:
    model = make_local()
    list(model.stream(greedy(some_prompt(100), 5)))
    real, failures = model._runner.logits, iter([True])

    def short_of_memory(*arguments):
        if next(failures, False):
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(model._runner, "logits", short_of_memory)
    other = some_prompt(50, 1)
    assert tokens_of(model.stream(greedy(other, 10))) == reply_of(generate(other, 10))
    assert model.status().cached_tokens == 59


def test_without_idle_sequences_the_newest_request_is_given_up(make_local, generate, monkeypatch) -> None:
    model = make_local()
    real = model._runner.logits

    def memory_for_one(pieces, *rest):
        if len(pieces) > 1:
            raise MemoryError
        return real(pieces, *rest)

    monkeypatch.setattr(model._runner, "logits", memory_for_one)
    with model.stream(GenerationRequest("first", SamplingParams(max_tokens=3000, ban_eos=True))) as first:
        assert any(isinstance(event, Started) for event in first)
        with pytest.raises(Unavailable, match="memory is full"):
            list(model.stream(greedy(some_prompt(40, 1), 60)))
        assert any(isinstance(event, TextDelta) for event in first) and model.status().running == 1
    prompt = some_prompt(30)
    assert tokens_of(model.stream(greedy(prompt, 20))) == reply_of(generate(prompt, 20))


def test_a_sequence_that_cannot_grow_ends_its_row_only(make_local, generate, monkeypatch) -> None:
    model = make_local()
    prompt = some_prompt(200)
    growing = model.stream(GenerationRequest(tuple(some_prompt(20, 1)), SamplingParams(max_tokens=2000, ban_eos=True)))
    next(event for event in growing if isinstance(event, Started))

    def no_memory(*arguments):
        raise MemoryError

    for slot in model._loop.cache._sequences:
        monkeypatch.setattr(slot.store, "resize", no_memory)
    with pytest.raises(Unavailable, match="memory is full"):
        list(growing)
    assert tokens_of(model.stream(greedy(prompt, 20))) == reply_of(generate(prompt, 20))
    assert (model.status().running, model.status().waiting) == (0, 0)


def test_the_cache_stays_within_its_limit(make_local, generate) -> None:
    bytes_per_token = 2 * 2 * 2 * 16 * 8
    model = make_local(cache_bytes=bytes_per_token * 1024)
    for seed in range(6):
        prompt = some_prompt(100, seed)
        assert tokens_of(model.stream(greedy(prompt, 5))) == reply_of(generate(prompt, 5))
        assert model.status().cache_bytes <= bytes_per_token * 1024
    with pytest.raises(Unavailable, match="cache"):
        list(model.stream(greedy(some_prompt(2000), 5)))


def test_a_slow_reply_keeps_to_its_speed(make_local) -> None:
    sampling = SamplingParams(do_sample=False, max_tokens=6, max_tokens_per_second=20, ban_eos=True)
    end = finished(list(make_local().stream(GenerationRequest("slow", sampling))))
    assert end.timings.decode >= 5 / 20 * 0.95


def test_guidance_away_from_nothing_changes_the_reply(make_local) -> None:
    model = make_local(prefill_chunk=16)
    plain = tokens_of(model.stream(greedy(some_prompt(60), 20)))
    sampling = SamplingParams(do_sample=False, max_tokens=20, guidance_scale=3, negative_prompt="not this, " * 5)
    guided = GenerationRequest(tuple(some_prompt(60)), sampling, logprobs=0)
    first = tokens_of(model.stream(guided))
    assert first == tokens_of(model.stream(guided)) != plain


def test_closing_the_model_ends_what_runs_with_a_sentence(make_local) -> None:
    model = make_local()
    running = model.stream(GenerationRequest("on and on", SamplingParams(max_tokens=3000, ban_eos=True)))
    next(event for event in running if isinstance(event, TextDelta))
    model.close()
    with pytest.raises(Unavailable, match="unloaded"):
        list(running)
    with pytest.raises(Unavailable):
        model.stream(GenerationRequest("more"))


def test_the_next_tokens_are_told_as_the_model_has_them_and_as_sampling_leaves_them(make_local, tiny_model) -> None:
    import torch

    model, prompt = make_local(), some_prompt(40)
    with torch.inference_mode():
        truth = torch.log_softmax(tiny_model()(torch.tensor([prompt])).logits[0, -1].float(), -1)
    sampling = SamplingParams(top_k=3, temperature=0.5, max_tokens=100)
    found = model.next_tokens(GenerationRequest(tuple(prompt), sampling), 5)
    assert [token.id for token in found.model] == truth.topk(5).indices.tolist()
    assert [token.logprob for token in found.model] == pytest.approx(truth.topk(5).values.tolist(), abs=1e-4)
    assert [token.id for token in found.left] == truth.topk(3).indices.tolist()
    assert [token.logprob for token in found.left] == pytest.approx(
        torch.log_softmax(truth.topk(3).values / 0.5, -1).tolist(), abs=1e-4
    )
    # The prompt is read already: whoever moves a slider waits for one token.
    assert finished(list(model.stream(greedy(prompt, 2)))).usage.cached_tokens == 39
    only = model.next_tokens(GenerationRequest(tuple(prompt), SamplingParams(temperature=0)), 5)
    assert [(token.id, token.logprob) for token in only.left] == [(found.model[0].id, 0)]
    with pytest.raises(UserError, match="No token can be chosen"):
        model.next_tokens(GenerationRequest(tuple(prompt), SamplingParams(banned_tokens=tuple(range(260)))), 5)
