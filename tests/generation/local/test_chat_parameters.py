"""Each of the chat parameters of the Parameters tab changes what the engine does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from modules.generation.local.model import LocalModel
from modules.generation.sampling import SamplingParams
from modules.generation.types import Finished, GenerationRequest, Message, TextDelta

END = 259
"""<|im_end|>: the tiny model's end of text."""
MakeLocal = Callable[..., LocalModel]


def reply(model: LocalModel, prompt: Any = "Once", **sampling: Any) -> tuple[str, Finished]:
    with model.stream(
        GenerationRequest(prompt, SamplingParams.read({"max_tokens": 12, "temperature": 0, **sampling}))
    ) as events:
        found = list(events)
    finished = found[-1]
    assert isinstance(finished, Finished)
    return "".join(event.text for event in found if isinstance(event, TextDelta)), finished


def test_max_tokens_and_stop_texts_end_a_reply(make_local: MakeLocal):
    model = make_local()
    text, finished = reply(model, regex="[a-z]{40}")
    assert (len(text), finished.reason) == (12, "length")
    assert reply(model, regex="[a-z]{40}", max_tokens=5)[0] == text[:5]
    cut, finished = reply(model, regex="[a-z]{40}", stop=[text[4:6]])
    assert cut == text[: text.index(text[4:6])] and finished.stop_text == text[4:6]


def test_a_banned_end_never_comes_and_special_tokens_are_shown_where_wanted(make_local: MakeLocal):
    model = make_local()
    likely = {"logit_bias": {str(END): 100}}
    assert reply(model, **likely)[1].usage.completion_tokens == 1
    assert reply(model, **likely, ban_eos=True)[1].usage.completion_tokens == 12
    marker = {"logit_bias": {"258": 100}, "max_tokens": 2}
    assert reply(model, **marker)[0] == ""
    assert reply(model, **marker, skip_special_tokens=False)[0] == "<|im_start|><|im_start|>"


def test_the_begin_token_is_added_to_plain_prompts(make_local: MakeLocal):
    model = make_local()
    model._prompt_builder.tokenizer.add_bos_token = True
    with_begin, without = (
        len(model.render(GenerationRequest("Once", SamplingParams(add_bos=add))).tokens) for add in (True, False)
    )
    assert (with_begin, without) == (5, 4)


def test_the_seed_decides_the_reply(make_local: MakeLocal):
    model = make_local()
    free = {"temperature": 1.0, "ban_eos": True, "max_tokens": 30}
    assert reply(model, **free, seed=1)[0] == reply(model, **free, seed=1)[0] != reply(model, **free, seed=2)[0]


def test_forms_are_followed(make_local: MakeLocal):
    model = make_local()
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    assert json.loads(reply(model, json_schema=json.dumps(schema), max_tokens=60)[0]).keys() == {"a"}
    assert reply(model, grammar='root ::= "yes" | "no"', max_tokens=20)[0] in ("yes", "no")


def test_a_speed_limit_is_kept(make_local: MakeLocal):
    model = make_local()
    reply(model)
    begun = time.monotonic()
    reply(model, ban_eos=True, max_tokens=6, max_tokens_per_second=20)
    assert time.monotonic() - begun >= 0.24  # five pauses of a twentieth of a second


def test_a_truncation_length_leaves_the_oldest_out(make_local: MakeLocal):
    model = make_local()
    sampling = SamplingParams(truncation_length=100, max_tokens=20)
    text = model.render(GenerationRequest("x" * 300 + "the end", sampling))
    assert len(text.tokens) == 80 and text.text.endswith("the end")
    turns = tuple(Message(role, letter * 30) for role, letter in (("user", "a"), ("assistant", "b"), ("user", "c")))  # type: ignore[arg-type]
    chat = model.render(GenerationRequest(turns, sampling))
    assert (chat.dropped_messages, "a" * 30 in chat.text, "c" * 30 in chat.text) == (2, False, True)
    whole = model.render(GenerationRequest(turns, SamplingParams(max_tokens=20)))
    assert whole.dropped_messages == 0
