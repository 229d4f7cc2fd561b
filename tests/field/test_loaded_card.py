"""What a load did stands on the model's card, in the words of the estimate, and adds up like it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.api.model_answers import loaded_card
from modules.app import App
from modules.generation.types import Capabilities, ModelStatus
from modules.i18n.sentences import spoken
from modules.library import memory
from modules.library.hardware import Machine
from modules.library.model_spec import ModelShape, ModelSpec
from modules.loaders import choose
from modules.loaders.options import LoadOptions
from modules.services.models import wish_of
from tests.fakes import EVERYTHING, EchoModel, stream_of
from tests.in_process import make_app

UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
WHY = "seven answers one request at a time: it keeps a running state that cannot be cut back."


def sizes(sentence: str) -> list[float]:
    return [float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) (bytes|[KMG]iB)", sentence)]


class Alone(EchoModel):
    def status(self) -> ModelStatus:
        return ModelStatus(cache_bytes=300 << 20, cache_limit=2 << 30, cached_tokens=100)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    made = make_app(tmp_path)
    shape = ModelShape(layers=32, hidden_size=4096, heads=32, kv_heads=32, head_dim=128, vocabulary=32000)
    spec = ModelSpec("seven", tmp_path, "folder", 14 << 30, parameters=7_000_000_000, dtype="float16", shape=shape)

    def load(spec: Any, options: Any, report: Any) -> EchoModel:
        for said in ("Loading seven", "Loading seven: 90 %", WHY):
            report(said)
        one: Capabilities = replace(EVERYTHING, max_parallel=1)
        return Alone(name="seven", capabilities=one)

    monkeypatch.setattr(choose, "load", load)
    monkeypatch.setattr(made.models, "find", lambda name: spec)
    yield made
    made.close()


def test_the_card_tells_bits_replies_at_a_time_why_and_the_speed(app: App):
    assert loaded_card(app) is None
    app.load_model("seven", LoadOptions(load_in_8bit=True))
    app.manager.speed = 12.5
    card = loaded_card(app)
    assert card is not None
    assert (card.name, card.bits, card.parallel, card.speed) == ("seven", 8, 1, 12.5)
    assert card.notes == [WHY], "what passed with the load (percent) is not kept"
    with spoken("zh"):
        card = loaded_card(app)
    assert card is not None and card.notes == ["seven 一次只回答一个请求：它保存的运行状态无法回退。"]
    assert not re.search("[A-Za-z]{4,}", card.taken)


def test_estimate_and_state_have_the_same_words_and_add_up(app: App):
    options = LoadOptions(load_in_4bit=True, ctx_size=2048)
    spec = app.models.find("seven")
    plan = memory.plan(spec, wish_of(options), Machine(64 << 30, 64 << 30))
    app.load_model("seven", options)
    card = loaded_card(app)
    assert card is not None and card.bits == 4
    total, weights, cache, other, _free = sizes(plan.sentence)
    taken, weights_now, cache_now, other_now, limit = sizes(card.taken)
    assert total == pytest.approx(weights + cache + other, abs=0.16 * UNITS["GiB"])
    assert taken == pytest.approx(weights_now + cache_now + other_now, abs=0.16 * UNITS["GiB"])
    assert (weights_now, other_now) == (weights, other) and (cache_now, limit) == (300 << 20, 2 << 30)
    words = re.search(r"\((.*?)\)", plan.sentence), re.search(r"\((.*?)\)", card.taken)
    assert words[0] and words[1]
    assert re.sub(r"[\d.]+ \w+", "N", words[0][1]) == re.sub(r"[\d.]+ \w+", "N", words[1][1])


def test_the_speed_is_that_of_the_last_reply_of_the_loaded_model(app: App):
    app.load_model("seven")
    from modules.generation.types import GenerationRequest, Message

    with stream_of(app.manager, GenerationRequest((Message("user", "a long enough question"),))) as events:
        list(events)
    assert app.manager.speed is None or app.manager.speed > 0
    app.manager.speed = 3.0
    app.load_model("seven")
    assert app.manager.speed is None, "another load, another speed"
