"""A GGUF model behind the seam: a tiny random Llama, really run by llama.cpp."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from math import exp, fsum
from pathlib import Path
from typing import Any

import pytest

from modules.errors import ContextTooLong, NotFound, Unavailable, UserError
from modules.generation.llamacpp import model as module
from modules.generation.llamacpp.model import LlamacppModel
from modules.generation.llamacpp.server_config import Launch
from modules.generation.sampling import SamplingParams
from modules.generation.stream import EventStream
from modules.generation.types import (
    Finished,
    GenerationRequest,
    Image,
    LoadedModel,
    Message,
    Prefill,
    Prompt,
    Queued,
    Started,
    TextDelta,
)
from modules.library.gguf_header import read_control_tokens
from tests.tiny import CHATML
from tests.tiny_gguf import write_lora

CONTEXT, PARALLEL = 1024, 2
HELLO = Message("user", "Hello there")


def open_model(path: Path) -> LlamacppModel:
    # One thread: with several, llama.cpp's threads wait for each other on a busy machine.
    launch = Launch(str(path), "", CONTEXT, PARALLEL, threads=1, batch=32, cpu=True, pooling_mean=True)
    return LlamacppModel("tiny", launch, chat_template=CHATML, control=read_control_tokens(path))


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Iterator[LlamacppModel]:
    model = open_model(tiny_gguf)
    yield model
    model.close()


def ask(prompt: Prompt, *, sampling: dict | None = None, **request) -> GenerationRequest:
    return GenerationRequest(prompt, SamplingParams(**{"max_tokens": 24, "do_sample": False, **(sampling or {})}), **request)


def text_of(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def reply(model: LlamacppModel, prompt: Prompt = "Hello there", **settings) -> str:
    return text_of(model.stream(ask(prompt, **settings)))


def end_of(events: list) -> Finished:
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(event, Finished) for event in events) == 1
    return events[-1]


def wait_for(condition, seconds: float = 30) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds
        time.sleep(0.01)
    return time.monotonic() - start


def test_it_is_a_loaded_model(model: LlamacppModel) -> None:
    seam: LoadedModel = model
    assert (seam.name, seam.context_length, seam.adapters) == ("tiny", CONTEXT, ())


# --- text


def test_greedy_tokens_are_those_of_transformers(model: LlamacppModel, tiny_llama_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    reference: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    prompt = tokenizer("Hello there", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        made = reference.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :]
        logits = reference(prompt).logits[0, -1].log_softmax(-1)
    events = list(model.stream(ask("Hello there", logprobs=3)))
    details = [token for event in events if isinstance(event, TextDelta) for token in event.details]
    # Bytes in the middle of a character are not reported.
    assert tokenizer.decode(made, skip_special_tokens=True).replace("\ufffd", "") == text_of(events)
    assert details[0].id == int(made[0])
    assert details[0].logprob == pytest.approx(float(logits[made[0]]), abs=1e-3)
    assert [other.id for other in details[0].alternatives] == logits.topk(3).indices.tolist()
    assert end_of(events).usage.completion_tokens == 24


def test_the_next_tokens_as_the_model_has_them_and_as_sampling_leaves_them(model: LlamacppModel) -> None:
    events = list(model.stream(ask("Hello there", logprobs=6, sampling={"max_tokens": 4})))
    first = next(event for event in events if isinstance(event, TextDelta))
    found = model.next_tokens(ask("Hello there", sampling={"do_sample": True, "top_k": 4}), 6)
    assert [token.id for token in found.model] == [token.id for token in first.details[0].alternatives]
    assert found.left is not None
    assert [token.id for token in found.left] == [token.id for token in found.model[:4]]
    assert fsum(exp(token.logprob) for token in found.left) == pytest.approx(1, abs=1e-3)
    greedy = model.next_tokens(ask("Hello there"), 6)
    assert greedy.left is not None and [token.id for token in greedy.left] == [found.model[0].id]
    wait_for(lambda: model.status().running == 0)


def test_tokens_and_text_turn_into_each_other(model: LlamacppModel) -> None:
    tokens = model.tokenize("héllo 你好<|im_end|>", special=True)
    assert len(tokens) == len("héllo 你好".encode()) + 1
    assert model.detokenize(tokens) == "héllo 你好<|im_end|>"
    assert len(model.tokenize("<|im_end|>")) == len("<|im_end|>")


def test_only_whole_characters_are_streamed(model: LlamacppModel) -> None:
    events = list(model.stream(ask("Hi", sampling={"regex": "(你好😀é){3}", "max_tokens": 60})))
    pieces = [event.text for event in events if isinstance(event, TextDelta) and event.text]
    assert pieces == list("你好😀é") * 3
    assert end_of(events).usage.completion_tokens >= len("你好😀é".encode()) * 3


def test_bytes_that_are_no_character_are_left_out(model: LlamacppModel) -> None:
    for seed in range(3):
        assert "\ufffd" not in reply(model, sampling={"do_sample": True, "temperature": 2, "seed": seed, "max_tokens": 100})


def test_a_stop_text_ends_the_reply_and_is_not_shown_in_part(model: LlamacppModel) -> None:
    sampling = {"grammar": 'root ::= "abENcdENDxyz"', "stop": ("END", "nothing"), "max_tokens": 60}
    events = list(model.stream(ask("Hi", sampling=sampling)))
    assert text_of(events) == "abENcd"
    assert (end_of(events).reason, end_of(events).stop_text) == ("stop", "END")
    assert all("E" not in event.text or "EN" in event.text for event in events if isinstance(event, TextDelta))


def test_what_was_held_back_for_a_stop_text_comes_at_the_end(model: LlamacppModel) -> None:
    events = list(model.stream(ask("Hi", sampling={"grammar": 'root ::= "abcEN"', "stop": ("END",), "max_tokens": 5})))
    assert text_of(events) == "abcEN"


def test_the_mark_that_ends_a_turn_is_shown_only_when_asked_for(model: LlamacppModel) -> None:
    (end,) = model.tokenize("<|im_end|>", special=True)
    at_once = {"logit_bias": {str(end): 100}}
    assert reply(model, sampling=at_once) == ""
    assert reply(model, sampling={**at_once, "skip_special_tokens": False}) == "<|im_end|>"


# --- lengths


def test_the_reply_ends_at_max_tokens_or_where_the_model_ends_it(model: LlamacppModel) -> None:
    (end,) = model.tokenize("<|im_end|>", special=True)
    longest = end_of(list(model.stream(ask("Hi", sampling={"max_tokens": 7}))))
    assert (longest.reason, longest.usage.completion_tokens) == ("length", 7)
    shortest = end_of(list(model.stream(ask("Hi", sampling={"logit_bias": {str(end): 100}}))))
    assert (shortest.reason, shortest.usage.completion_tokens) == ("stop", 1)


def test_a_reply_has_at_least_min_tokens(model: LlamacppModel) -> None:
    (end,) = model.tokenize("<|im_end|>", special=True)
    sampling = {"logit_bias": {str(end): 100}, "min_tokens": 5, "max_tokens": 20}
    events = list(model.stream(ask("Hi", sampling=sampling)))
    assert (end_of(events).reason, end_of(events).usage.completion_tokens) == ("stop", 6)
    assert sum(isinstance(event, Started) for event in events) == 1
    free = reply(model, "Hi", sampling={"max_tokens": 5, "ban_eos": True})
    assert text_of(events) == free


def test_banning_the_end_goes_on_to_max_tokens(model: LlamacppModel) -> None:
    (end,) = model.tokenize("<|im_end|>", special=True)
    events = list(model.stream(ask("Hi", sampling={"logit_bias": {str(end): 50}, "ban_eos": True})))
    assert (end_of(events).reason, end_of(events).usage.completion_tokens) == ("length", 24)


def test_a_huge_max_tokens_ends_where_the_context_does(model: LlamacppModel) -> None:
    events = list(model.stream(ask("x" * (CONTEXT - 20), sampling={"max_tokens": 1_000_000, "ban_eos": True})))
    assert (end_of(events).reason, end_of(events).usage.completion_tokens) == ("length", 20)


def test_a_prompt_longer_than_the_context_is_refused_at_once(model: LlamacppModel) -> None:
    with pytest.raises(ContextTooLong, match=rf"{CONTEXT} "):
        model.stream(ask("x" * CONTEXT))


def test_the_oldest_turns_are_left_out_when_asked_for(model: LlamacppModel) -> None:
    turns = [Message("system", "Be brief.")]
    for number in range(8):
        turns += [Message("user", f"Question {number}? " + "a" * 90), Message("assistant", "b" * 90)]
    request = ask((*turns, HELLO), overflow="drop_oldest")
    with pytest.raises(ContextTooLong):
        model.stream(ask((*turns, HELLO)))
    rendered = model.render(request)
    assert "Be brief." in rendered.text and "Question 0?" not in rendered.text and "Question 7?" in rendered.text
    events = list(model.stream(request))
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.dropped_messages == rendered.dropped_messages > 0
    assert started.prompt_tokens == len(rendered.tokens) < CONTEXT


def test_reading_speed_slows_the_reply_down(model: LlamacppModel) -> None:
    start = time.monotonic()
    reply(model, sampling={"max_tokens": 8, "max_tokens_per_second": 16, "regex": "a{8}"})
    assert 0.4 < time.monotonic() - start < 5


# --- how tokens are chosen


def test_the_same_seed_gives_the_same_reply(model: LlamacppModel) -> None:
    hot = {"do_sample": True, "temperature": 2.0, "max_tokens": 40}
    assert reply(model, sampling={**hot, "seed": 5}) == reply(model, sampling={**hot, "seed": 5})
    assert len({reply(model, sampling={**hot, "seed": seed}) for seed in range(4)}) > 1


def test_neutral_sampling_draws_from_all_tokens(model: LlamacppModel) -> None:
    """llama.cpp's own top-k of 40 and min-p of 0.05 would leave a handful of this flat distribution."""
    seen: set[int] = set()
    for seed in range(6):
        request = ask("Hello", sampling={"do_sample": True, "temperature": 5, "seed": seed, "max_tokens": 60}, logprobs=0)
        seen |= {token.id for event in model.stream(request) if isinstance(event, TextDelta) for token in event.details}
    few: set[int] = set()
    request = ask("Hello", sampling={"do_sample": True, "temperature": 5, "top_k": 1, "seed": 1, "max_tokens": 60}, logprobs=0)
    few |= {token.id for event in model.stream(request) if isinstance(event, TextDelta) for token in event.details}
    assert len(seen) > 60 > len(few)


@pytest.mark.parametrize(
    "changed",
    [
        {"top_k": 1},
        {"top_p": 0.0001},
        {"min_p": 1.0},
        {"top_n_sigma": 0.001},
        {"typical_p": 0.0001},
        {"temperature": 0.01},
        {"dynamic_temperature": True, "dynatemp_low": 0.01, "dynatemp_high": 0.02},
        {"mirostat_mode": 2, "mirostat_tau": 0.01},
        {"xtc_probability": 1.0, "xtc_threshold": 0.0},
        {"repetition_penalty": 5.0},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"dry_multiplier": 5.0, "dry_allowed_length": 1, "dry_sequence_breakers": ()},
    ],
)
def test_every_sampler_that_is_promised_has_an_effect(model: LlamacppModel, changed: dict) -> None:
    plain = {"do_sample": True, "temperature": 1.0, "seed": 11, "max_tokens": 60}
    assert set(changed) <= model.capabilities.samplers
    assert reply(model, sampling=plain) != reply(model, sampling={**plain, **changed})


def test_biased_and_banned_tokens(model: LlamacppModel) -> None:
    (letter,) = model.tokenize("Q")
    assert reply(model, sampling={"logit_bias": {str(letter): 100}, "max_tokens": 5}) == "QQQQQ"
    assert "Q" not in reply(model, sampling={"logit_bias": {str(letter): 100}, "banned_tokens": (letter,)})


# --- form


def test_a_grammar_a_regular_expression_and_a_schema_decide_the_form(model: LlamacppModel) -> None:
    assert reply(model, sampling={"grammar": 'root ::= "yes" | "no"'}) in ("yes", "no")
    assert reply(model, sampling={"grammar": 'start: "maybe"'}) == "maybe"
    assert reply(model, sampling={"regex": "[0-9]{4}"}).isdigit()
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    made = json.loads(reply(model, sampling={"json_schema": json.dumps(schema), "max_tokens": 60}))
    assert isinstance(made["ok"], bool)


@pytest.mark.parametrize("form", [{"grammar": "root ::= ((("}, {"regex": "[0-9"}, {"json_schema": '{"type": "objectt"}'}])
def test_a_form_with_a_mistake_is_refused_and_not_ignored(model: LlamacppModel, form: dict) -> None:
    with pytest.raises(UserError) as caught:
        model.stream(ask("Hi", sampling=form))
    assert (caught.value.param or "").split(".")[0] in form


# --- conversations


def test_the_models_own_template_renders_the_prompt(model: LlamacppModel) -> None:
    rendered = model.render(ask((HELLO,)))
    assert rendered.text == "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n"
    assert model.detokenize(rendered.tokens) == rendered.text
    assert model.render(ask((HELLO,), template="{{ messages[0].content }}!")).text == "Hello there!"
    reply_so_far = ask((HELLO, Message("assistant", "Good mor")), continue_reply=True)
    assert model.render(reply_so_far).text.endswith("assistant\nGood mor")


def test_what_thinking_the_template_opens_is_told_at_the_start(model: LlamacppModel) -> None:
    for ending, opened in (("<think>\n", "<think>"), ("<think>\n\n</think>\n\n", "")):
        request = ask((HELLO,), template="{{ messages[0].content }}" + ending)
        assert next(event.opened for event in model.stream(request) if isinstance(event, Started)) == opened


def test_what_cannot_be_rendered_is_refused(model: LlamacppModel, tiny_gguf: Path) -> None:
    with pytest.raises(UserError, match="message"):
        model.stream(ask(()))
    with pytest.raises(UserError, match="images"):
        model.stream(ask((Message("user", "Look", (Image(b""),)),)))
    with pytest.raises(UserError, match="template"):
        model.stream(ask((HELLO,), template="{% for"))


def test_token_ids_are_a_prompt_too_and_an_echo_shows_them(model: LlamacppModel) -> None:
    tokens = tuple(model.tokenize("Hello there"))
    events = list(model.stream(ask(tokens, echo=True)))
    (started,) = (event for event in events if isinstance(event, Started))
    assert "".join(token.text for token in started.prompt) == "Hello there"
    assert text_of(events) == reply(model)


def test_the_next_turn_reads_only_what_is_new(model: LlamacppModel) -> None:
    first = (Message("user", "A question about lighthouses. " * 8),)
    answer = reply(model, first)
    events = list(model.stream(ask((*first, Message("assistant", answer), HELLO))))
    usage = end_of(events).usage
    assert usage.cached_tokens >= 200
    assert usage.prompt_tokens - usage.cached_tokens < 120
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.cached_tokens == usage.cached_tokens


def test_events_come_in_order_and_prefill_counts_up(model: LlamacppModel) -> None:
    events = list(model.stream(ask("A prompt of several pieces. " * 10)))
    kinds = [type(event) for event in events]
    assert kinds == sorted(kinds, key=[Queued, Prefill, Started, TextDelta, Finished].index)
    done = [event.done for event in events if isinstance(event, Prefill)]
    assert done == sorted(done) and done[-1] == 280 and len(done) > 5
    times = end_of(events).timings
    assert 0 <= times.queued <= times.first_token and times.decode > 0


# --- many at once, and stopping


def busy_slots(model: LlamacppModel) -> int:
    return sum(slot["is_processing"] for slot in model._backend.process.ask("/slots"))


def test_more_requests_than_slots_are_all_answered_alike(model: LlamacppModel) -> None:
    streams = [model.stream(ask("Hello there", sampling={"max_tokens_per_second": 100})) for _ in range(6)]
    assert model.status().waiting == 4
    replies = [list(events) for events in streams]
    assert {text_of(events) for events in replies} == {reply(model)}
    assert any(isinstance(event, Queued) for event in replies[-1])
    wait_for(lambda: model.status().running == 0)


@pytest.mark.slow
def test_together_they_never_overfill_the_cache(model: LlamacppModel) -> None:
    """llama.cpp would end all replies with an error."""
    half = [ask(letter * 600, sampling={"max_tokens": 300, "ban_eos": True}) for letter in "abcd"]
    replies = [list(events) for events in [model.stream(request) for request in half]]
    assert [end_of(events).usage.completion_tokens for events in replies] == [300] * 4


@pytest.mark.slow
def test_replies_without_a_limit_share_the_cache_and_come_out_whole(
    model: LlamacppModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets room for a while; one that needs more than is free waits, and goes on where it was."""
    letters = {"banned_tokens": tuple(range(94, 256))}
    longest = ask("Hello there", sampling={"max_tokens": 1_000_000, "ban_eos": True, **letters})
    monkeypatch.setattr(module, "ALLOWANCE", 10_000)
    whole = text_of(model.stream(longest))
    monkeypatch.setattr(module, "ALLOWANCE", 100)
    replies = [list(events) for events in [model.stream(longest) for _ in range(5)]]
    assert [end_of(events).usage.completion_tokens for events in replies] == [CONTEXT - len("Hello there")] * 5
    assert {text_of(events)[:300] for events in replies} == {whole[:300]}
    for events in replies:
        assert sum(isinstance(event, Started) for event in events) == 1
    wait_for(lambda: model.status().running == 0)


def start_endless(model: LlamacppModel, prompt: str = "Hi") -> EventStream:
    return model.stream(ask(prompt, sampling={"max_tokens": 900, "ban_eos": True, "max_tokens_per_second": 20}))


def test_closing_stops_the_reply_at_once(model: LlamacppModel) -> None:
    events = start_endless(model)
    while not isinstance(events.get(), TextDelta):
        pass
    events.close()
    assert wait_for(lambda: busy_slots(model) == 0) < 2
    wait_for(lambda: model.status().running == 0)


def test_closing_in_the_middle_of_the_prompt_stops_reading_it(model: LlamacppModel) -> None:
    events = model.stream(ask("x" * 1000))
    while not isinstance(events.get(), Prefill):
        pass
    events.close()
    assert wait_for(lambda: busy_slots(model) == 0) < 2
    wait_for(lambda: model.status().running == 0)


def test_closing_leaves_the_queue(model: LlamacppModel) -> None:
    running = [start_endless(model) for _ in range(PARALLEL)]
    waiting = model.stream(ask("Hi"))
    assert waiting.get() == Queued(1)
    waiting.close()
    assert model.status().waiting == 0
    for events in running:
        events.close()
    wait_for(lambda: model.status().running == 0)
    assert reply(model) == reply(model)


# --- adapters


def test_each_request_names_its_adapter(model: LlamacppModel, tiny_llama_folder: Path, tmp_path: Path) -> None:
    base = reply(model)
    model.load_adapter("pirate", str(write_lora(tmp_path / "pirate.gguf", tiny_llama_folder)))
    model.load_adapter("poet", str(write_lora(tmp_path / "poet.gguf", tiny_llama_folder, seed=1)))
    assert model.adapters == ("pirate", "poet")
    streams = {name: model.stream(ask("Hello there", adapter=name)) for name in (None, "pirate", "poet")}
    replies = {name: text_of(events) for name, events in streams.items()}
    assert replies[None] == base and len(set(replies.values())) == 3
    assert reply(model, adapter="pirate", adapter_strength=0.0) == base
    assert reply(model, adapter="pirate", adapter_strength=2.0) not in (base, replies["pirate"])
    model.unload_adapter("pirate")
    with pytest.raises(NotFound):
        reply(model, adapter="pirate")
    assert reply(model, adapter="poet") == replies["poet"]
    model.unload_adapter("poet")


def test_what_was_computed_with_an_adapter_is_never_taken_for_the_base_however_many_prompts_lie_between(
    model: LlamacppModel, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    prompt = "The same prompt for all of them, long enough to be worth keeping. " * 3
    base = reply(model, prompt)
    model.load_adapter("pirate", str(write_lora(tmp_path / "pirate.gguf", tiny_llama_folder)))
    try:
        for round in range(3):
            assert reply(model, prompt, adapter="pirate") != base
            for number in range(2 * PARALLEL):
                reply(model, f"{number}{round} is something else, which takes the place of what was there before. " * 3)
            assert reply(model, prompt) == base
    finally:
        model.unload_adapter("pirate")


def test_an_adapter_for_another_model_is_refused_with_the_reason(
    model: LlamacppModel, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    base = reply(model)
    with pytest.raises(UserError, match=r"attn_output.*shape"):
        model.load_adapter("wide", str(write_lora(tmp_path / "wide.gguf", tiny_llama_folder, width=32)))
    with pytest.raises(UserError, match="GGUF adapter"):
        model.load_adapter("folder", str(tmp_path))
    assert model.adapters == () and reply(model) == base


# --- vectors, faults, the end


def test_texts_become_vectors_of_unit_length(model: LlamacppModel) -> None:
    first, second, again = model.embed(["Hello there", "Something else", "Hello there"])
    assert fsum(value * value for value in first) == pytest.approx(1)
    assert first == pytest.approx(again) and first != pytest.approx(second)
    with pytest.raises(UserError, match=f"{CONTEXT}"):
        model.embed(["x" * (CONTEXT + 100)])


def test_a_crash_ends_the_running_replies_and_the_next_one_works(tiny_gguf: Path) -> None:
    model = open_model(tiny_gguf)
    before = reply(model)
    events = start_endless(model)
    while not isinstance(events.get(), TextDelta):
        pass
    os.kill(model.pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match="ended unexpectedly"):
        list(events)
    assert reply(model) == before
    model.close()


def test_closing_the_model_ends_its_process_and_the_running_replies(tiny_gguf: Path) -> None:
    model = open_model(tiny_gguf)
    events = start_endless(model)
    while not isinstance(events.get(), TextDelta):
        pass
    start, pid = time.monotonic(), model.pid
    model.close()
    model.close()
    assert time.monotonic() - start < 5
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(Unavailable, match="unloaded"):
        list(events)
    with pytest.raises(Unavailable, match="not loaded"):
        model.stream(ask("Hi"))
    assert model.status().running in (0, 1)


def test_llama_cpp_ends_with_us_even_when_we_are_killed(tiny_gguf: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, time; from pathlib import Path; from tests.generation.test_llamacpp_model import open_model\n"
        f"model = open_model(Path({str(tiny_gguf)!r}))\n"
        "print(model.pid, model._backend.process.launch.socket, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child, place = parent.stdout.readline().split()
    parent.kill()
    parent.communicate()
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "(zombie)" in Path(f"/proc/{child}/status").read_text(), 10)
    assert not Path(place).parent.exists()


def test_llama_cpps_log_stays_off_the_screen(tiny_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = open_model(tiny_gguf)
    reply(model)
    model.close()
    assert capfd.readouterr() == ("", "")
