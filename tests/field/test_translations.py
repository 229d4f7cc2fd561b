"""A Chinese page is Chinese to the last word: what the server says too, in whatever room it is said. The API stays English."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.app import App
from modules.errors import Unavailable
from modules.library import memory
from modules.library.machine import Machine
from modules.library.spec import ModelShape, ModelSpec
from modules.ui import sentences
from modules.ui.words import LANGUAGES
from tests.fakes import EchoModel
from tests.in_process import make_app, serving
from tools import sentences as source

OTHERS = [language for language in LANGUAGES if language != "en"]
CHINESE = {"Accept-Language": "zh-CN,zh;q=0.9"}


@pytest.mark.parametrize("language", OTHERS)
def test_every_sentence_of_the_server_that_reaches_the_page_has_a_translation(language: str):
    assert source.missing(language) == {}, "`python -m tools.sentences` lists them"
    assert source.left_over(language) == []


def test_the_source_is_really_searched():
    said, _ = source.collect()
    assert len(said) > 400
    assert said["{1} is still being loaded. Try again in a moment."] == "generation/engine.py"
    assert "Loading {1}: {2} %" not in said, "a single word needs no test: it is found where it is used"
    assert not any(text.startswith("SELECT") for text in said)


@pytest.mark.parametrize("language", OTHERS)
def test_translations_keep_all_values(language: str):
    for english, written in source.table_of(language).items():
        places, kept = (set(re.findall(r"\{\d\}", text)) for text in (english, written))
        grammar = {"{1}"} if english.startswith("Input should") else {"{5}"} if "names {5} missing" in english else set()
        assert kept <= places and places - kept <= grammar, english


def test_each_sentence_is_found_again_with_its_values():
    """No other sentence, and no value, stands in its way."""
    names = ["Alpha-1", "b_2.gguf", "7", "1.5 GiB", "e", "f"]
    for english, written in source.table_of("zh").items():
        text, expected = (re.sub(r"\{(\d)\}", lambda place: names[int(place[1]) - 1], words) for words in (english, written))
        if "}{" not in english and english.strip() == english and english != "{1}: {2}.":  # two values side by side are one
            assert sentences.in_language(text, "zh") == expected


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("Tiny is still being loaded. Try again in a moment.", "Tiny 仍在加载，请稍后再试。"),
        ("No model is loaded: Tiny is cut off. Download it again.", "没有加载模型：Tiny 被截断，请重新下载。"),
        ("There is no model called a in models/. There are: b, c.", "models/ 中没有名为 a 的模型。现有：b, c。"),
        ("There is no character called a.", "没有名为 a 的角色。"),
        ("all steps are done; the best was step 12", "所有步都已完成；最好的是第 12 步"),
        (
            "9 rows, 2 too short, 1 no answer; 6 sequences of 90 tokens, 60 of them learnt; 2 of them held out",
            "9 行，太短 2，没有回答 1；6 个序列，共 90 个词元，其中 60 个用于学习；其中留出 2 行",
        ),
        ("temperature: Input should be less than or equal to 5.", "temperature：必须小于或等于 5。"),
        ("something that nobody knows", "something that nobody knows"),
        ("", ""),
    ],
)
def test_sentences_within_sentences_lists_and_counts(english: str, chinese: str):
    assert sentences.in_language(english, "zh") == chinese
    assert sentences.in_language(english, "en") == english


def test_what_others_wrote_is_found_in_no_time_and_left_alone():
    long = "a: " * 1300
    assert sentences.in_language(long, "zh") == long
    assert sentences.in_language("x" * 100_000, "zh") == "x" * 100_000
    names = "starting over, my model.gguf"
    assert sentences.in_language(names, "zh") == names


def test_the_estimate_of_memory_is_chinese_to_the_last_word(tmp_path: Path):
    shape = ModelShape(layers=32, hidden_size=4096, heads=32, kv_heads=32, head_dim=128, vocabulary=32000)
    spec = ModelSpec("seven", tmp_path, "folder", 14 << 30, parameters=7_000_000_000, dtype="float16", shape=shape)
    verdicts = set()
    for free in (64, 16, 6, 1):
        machine = Machine(64 << 30, int(free * (1 << 30)))
        plan = memory.plan(spec, memory.LoadWish(context=4096), machine)
        sentence = plan.sentence
        verdicts.add(plan.verdict)
        written = sentences.in_language(sentence, "zh")
        left = re.sub(r"GiB|MiB|--[a-z-]+|bit|seven", "", written)
        assert not re.search("[A-Za-z]{2,}", left), written
    assert verdicts == {"fits", "tight", "too big"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, str]]:
    app = make_app(tmp_path_factory.mktemp("site"), EchoModel(name="echo"))
    with serving(app) as url:
        yield app, url
    app.close()


def test_the_page_is_answered_in_its_language_and_the_api_in_english(served: tuple[App, str]):
    app, url = served

    def refusal(path: str, **more: Any) -> str:
        return httpx.request(more.pop("method", "GET"), url + path, **more).json()["error"]["message"]

    assert refusal("/chats/messages/99") == "There is no such message."
    assert refusal("/chats/messages/99", headers=CHINESE) == "没有这条消息。"
    nowhere = refusal("/v1/models/none", headers=CHINESE)
    assert not re.search("[\u4e00-\u9fff]", nowhere), "programs are answered in English"
    app.store.set_preference("local", "page", {"language": "zh"})
    try:
        assert refusal("/chats/messages/99") == "没有这条消息。", "who chose Chinese gets it whatever the browser asks for"
    finally:
        app.store.set_preference("local", "page", None)


def test_the_state_of_a_load_is_told_in_the_language_of_whoever_looks(served: tuple[App, str]):
    app, url = served

    def fail(report: Any) -> Any:
        report("Loading Tiny: 40 %")
        raise Unavailable("The memory is too small for Tiny. Load it with fewer bits, or a smaller model.")

    with pytest.raises(Unavailable):
        app.engine.replace("Tiny", fail)
    try:
        pulse = httpx.get(f"{url}/chats/pulse", headers=CHINESE).json()
        log = httpx.get(f"{url}/chats/models", headers=CHINESE).json()["engine"]["log"]
        english = httpx.get(f"{url}/chats/pulse").json()
    finally:
        app.engine.replace("echo", lambda report: EchoModel(name="echo"))
    assert pulse["engine"]["error"] == "内存不足以加载 Tiny。请用更少的位数加载，或换较小的模型。"
    assert log == ["正在加载 Tiny：40 %"]
    assert english["engine"]["error"].startswith("The memory is too small")


def test_refusals_are_translated_whole_and_other_answers_are_left_alone():
    assert sentences._refusal(b"<html>", "zh") == b"<html>"
    assert sentences._refusal(b"[1]", "zh") == b"[1]"
    answer = {
        "error": {"message": "There is no such chat.", "type": "invalid_request_error", "param": None, "code": "not_found"}
    }
    read = json.loads(sentences._refusal(json.dumps(answer).encode(), "zh"))
    assert read["error"] == answer["error"] | {"message": "没有这个对话。"}
