"""A Chinese page is Chinese to the last word: what the server says too, in whatever room it is said. The API stays English."""

from __future__ import annotations

import asyncio
import contextvars
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio.context import LocalContext

from modules.app import App
from modules.errors import Unavailable
from modules.i18n import sentences
from modules.i18n.catalogs import LANGUAGES
from modules.library import memory
from modules.library.hardware import Machine
from modules.library.model_spec import ModelShape, ModelSpec
from modules.ui import events
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
    assert said["{1} is still being loaded. Try again in a moment."] == "generation/model_manager.py"
    assert "Loading {1}: {2} %" not in said, "a single word needs no test: it is found where it is used"
    assert not any(text.startswith("SELECT") for text in said)


@pytest.mark.parametrize("language", OTHERS)
def test_translations_keep_all_values(language: str):
    for english, written in source.table_of(language).items():
        places, kept = (set(re.findall(r"\{\w+\}", text)) for text in (english, written))
        grammar = {"{1}"} if english.startswith("Input should") else {"{5}"} if "names {5} missing" in english else set()
        assert kept <= places and places - kept <= grammar, english


def test_each_sentence_is_found_again_with_its_values():
    """No other sentence, and no value, stands in its way."""
    names = ["Alpha-1", "b_2.gguf", "7", "1.5 GiB", "e", "f", "g"]
    for english, written in source.table_of("zh").items():
        template = sentences.Template.read(english, written)
        if "}{" in english or english.strip() != english or not template.has_words:
            continue  # two values side by side are one; what has no words is told by its last value
        values = names[: len(template.places)]
        text = sentences.Template.read(english, english).filled(values)
        assert sentences.in_language(text, "zh") == template.filled(values)


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("Tiny is still being loaded. Try again in a moment.", "Tiny 仍在加载，请稍后再试。"),
        ("No model is loaded: Tiny is cut off. Download it again.", "没有加载模型：Tiny 被截断，请重新下载。"),
        ("There is no model called a in models/. There are: b, c.", "models/ 中没有名为 a 的模型。现有：b, c。"),
        ("There is no character called a.", "没有名为 a 的角色。"),
        ("all steps are done; the best was step 12", "所有步都已完成；最好的是第 12 步"),
        (
            "9 rows read, 6 good, 2 too short, 1 no answer; 6 sequences of 90 tokens, 60 of them learnt; 2 of them held out",
            "读取 9 行，可用 6 行，太短 2，没有回答 1；6 个序列，共 90 个词元，其中 60 个用于学习；其中留出 2 行",
        ),
        (
            (
                "3 rows read, 2 good, 1 the same when cut; 2 pairs of 9 tokens, 4 of them compared; "
                "the column a stands there again: it is read as a.1; b.csv: the column without a name stands there again: it is read as .1"
            ),
            (
                "读取 3 行，可用 2 行，截断后相同 1；2 对，共 9 个词元，其中 4 个用于比较；"
                "列“a”重复出现，读作“a.1”；b.csv：列“无名称”重复出现，读作“.1”"
            ),
        ),
        (
            "In the folder Tiny, x.gguf is a named pipe, not a file. Remove it.",
            "文件夹 Tiny 中的 x.gguf 是命名管道，不是文件，请移除。",
        ),
        (
            "x is a link to /a/b, which is not there. Connect the disk it lies on, or remove the link.",
            "x 是指向 /a/b 的链接，而后者不存在。请连接它所在的磁盘，或移除此链接。",
        ),
        (
            "In the folder m, a.json cannot be read: no permission. Let the user who runs this program read the file.",
            "文件夹 m 中的 a.json 无法读取：没有权限。请给运行本程序的用户读取此文件的权限。",
        ),
        (
            'config.json in m has "64" as "hidden_size", where a whole number from 1 to 2147483648 is expected. Correct it.',
            'm 中的 config.json 把“hidden_size”写为 "64"，而这里应为从 1 到 2147483648 的整数。请更正。',
        ),
        (
            'adapter_config.json in a has null as "lora_alpha", where a number is expected. Correct it.',
            "a 中的 adapter_config.json 把“lora_alpha”写为 null，而这里应为数字。请更正。",
        ),
        (
            (
                "/m/a_b is there already, and was not downloaded from a/b: it has c, d …, and a x.json that cannot be read. Nothing was changed. "
                "Move it away, or put the download elsewhere with `--output FOLDER`. "
                "If it is a copy of a/b, the command with `--check` compares it and takes it over."
            ),
            (
                "/m/a_b 已经存在，且不是从 a/b 下载的：其中有 c, d …，以及无法读取的 x.json。没有改动任何内容。"
                "请把它移走，或用 `--output 文件夹` 下载到别处。如果它是 a/b 的副本，给命令加上 `--check` 即可核对并接管它。"
            ),
        ),
        (
            (
                "https://h does not send a.bin as it lists it: it has 5 bytes there, and should have 6. "
                "Start the download again later, or set HF_ENDPOINT to another mirror."
            ),
            "https://h 发来的 a.bin 与其列表不符：那里是 5 字节，应为 6 字节。请稍后重新开始下载，或把 HF_ENDPOINT 设为其他镜像站。",
        ),
        (
            "a.jsonl holds several lists: train (9 rows), test (2 rows). Choose one: write a.jsonl:train, for example.",
            "a.jsonl 中有多个列表：train（9 行），test（2 行）。请选择一个，例如写 a.jsonl:train。",
        ),
        (
            "a.csv is not UTF-8 text. It is probably GBK: convert it to UTF-8 on the Training tab (Show data), or save it as UTF-8.",
            "a.csv 不是 UTF-8 文本。其编码可能是 GBK：请在“训练”页（“查看数据”）转换为 UTF-8，或另存为 UTF-8。",
        ),
        ("a.csv: line 3: it has 2 fields instead of 3", "a.csv：第 3 行：它有 2 个字段，而不是 3 个"),
        ("the text after 'x, y' has bytes that are not UTF-8", "'x, y' 之后的文本中有不是 UTF-8 的字节"),
        (
            "all steps are done; nothing was learnt at the end, because the learning rate is 0; the best was step 12",
            "所有步都已完成；最后什么也没有学到，因为学习率为 0；最好的是第 12 步",
        ),
        (
            (
                "/d cannot be written (no permission), and nothing can be saved there. Let the user who runs this program write it. "
                "Or choose another folder with --data-dir."
            ),
            "无法写入 /d（没有权限），那里不能保存任何内容。请给运行本程序的用户写入权限。也可以用 --data-dir 选择其他文件夹。",
        ),
        (
            "a.json is not valid JSON: Unterminated string starting at in line 1, column 7.",
            "a.json 不是有效的 JSON：第 1 行第 7 列，此处开始的字符串没有结束。",
        ),
        ("x.charx: This is no zip file, or a damaged one.", "x.charx：这不是 zip 文件，或者文件已损坏。"),
        (
            "a is not whole: its files lack b. Download it again. The index c does not name d.",
            "a 不完整：其文件中缺少 b。请重新下载。索引 c 没有列出 d。",
        ),
        ("At its beginning there should be a list.", "开头 应为列表。"),
        ("In the beginning, there was a model", "In the beginning, there was a model"),
        ("temperature: Input should be less than or equal to 5.", "temperature：必须小于或等于 5。"),
        ("something that nobody knows", "something that nobody knows"),
        ("", ""),
    ],
)
def test_sentences_within_sentences_lists_and_counts(english: str, chinese: str):
    assert sentences.in_language(english, "zh") == chinese
    assert sentences.in_language(english, "en") == english


def test_what_others_wrote_is_found_in_no_time_and_left_alone():
    for long in ("a: " * 1300, "a: " * 1300 + "b.", "a: b. " * 600 + "c.", "a, b; c " * 400):
        assert sentences.in_language(long, "zh") == long
    assert sentences.in_language("a says: " * 400, "zh").endswith("a says:"), "so deep there are no sentences of ours"
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
    app.store.for_owner("local").preferences.set("page", {"language": "zh"})
    try:
        assert refusal("/chats/messages/99") == "没有这条消息。", "who chose Chinese gets it whatever the browser asks for"
    finally:
        app.store.for_owner("local").preferences.set("page", None)


def test_the_state_of_a_load_is_told_in_the_language_of_whoever_looks(served: tuple[App, str]):
    app, url = served

    def fail(report: Any) -> Any:
        report("Loading Tiny: 40 %")
        raise Unavailable("The memory is too small for Tiny. Load it with fewer bits, or a smaller model.")

    with pytest.raises(Unavailable):
        app.manager.replace("Tiny", fail)
    try:
        pulse = httpx.get(f"{url}/chats/pulse", headers=CHINESE).json()
        log = httpx.get(f"{url}/chats/models", headers=CHINESE).json()["engine"]["log"]
        english = httpx.get(f"{url}/chats/pulse").json()
    finally:
        app.manager.replace("echo", lambda report: EchoModel(name="echo"))
    assert pulse["engine"]["error"] == "内存不足以加载 Tiny。请用更少的位数加载，或换较小的模型。"
    assert log == ["正在加载 Tiny：40 %"]
    assert english["engine"]["error"].startswith("The memory is too small")


def test_a_handler_that_answers_in_steps_keeps_its_language():
    """Gradio makes each step in another context, and says in the first whose it is."""
    closed: list[bool] = []

    @events.told
    def handler() -> Iterator[str]:
        try:
            yield sentences.said("There is no such chat.")
            yield sentences.said("There is no such chat.")
            raise Unavailable("There is no such chat.")
        finally:
            closed.append(True)

    def first(steps: Iterator[str]) -> str:
        LocalContext.request.set(SimpleNamespace(request=SimpleNamespace(scope={sentences.SCOPE_KEY: "zh"})))  # type: ignore[arg-type]
        return next(steps)

    steps = handler()
    assert contextvars.copy_context().run(first, steps) == contextvars.copy_context().run(next, steps) == "没有这个对话。"
    with pytest.raises(gr.Error) as refused:
        contextvars.copy_context().run(next, steps)
    assert refused.value.message == "没有这个对话。"
    assert sentences.said("There is no such chat.") == "There is no such chat."
    steps = handler()
    contextvars.copy_context().run(first, steps)
    steps.close()  # type: ignore[attr-defined]
    assert closed == [True, True]


def test_what_somebody_chose_is_looked_up_beside_the_loop_that_all_requests_share():
    threads: list[int] = []

    async def site(scope: Any, receive: Any, send: Any) -> None:
        threads.append(threading.get_ident())
        assert sentences.said("There is no such chat.") == "没有这个对话。"

    def chosen_by(connection: Any) -> str:
        threads.append(threading.get_ident())
        return "zh"

    asked = {"type": "http", "path": "/chats/pulse", "root_path": "", "headers": []}
    asyncio.run(sentences.PageLanguage(site, chosen_by)(asked, None, None))  # type: ignore[arg-type]
    assert len(set(threads)) == 2


def test_refusals_are_translated_whole_and_other_answers_are_left_alone():
    assert sentences._refusal(b"<html>", "zh") == b"<html>"
    assert sentences._refusal(b"[1]", "zh") == b"[1]"
    answer = {
        "error": {"message": "There is no such chat.", "type": "invalid_request_error", "param": None, "code": "not_found"}
    }
    read = json.loads(sentences._refusal(json.dumps(answer).encode(), "zh"))
    assert read["error"] == answer["error"] | {"message": "没有这个对话。"}
