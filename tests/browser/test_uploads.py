"""Training data on the page: files go through Gradio's own upload and become data sets, are shown within their card, and mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.fakes import EchoModel
from tests.in_process import ROOT, make_app, serving

pytestmark = pytest.mark.browser


def test_a_file_of_training_data_becomes_a_data_set(browser: Browser, tmp_path: Path):
    rows = tmp_path / "my-rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    app = make_app(tmp_path / "root", EchoModel())
    with serving(app) as url:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(url)
        page.get_by_role("tab", name="Training").click()
        page.get_by_role("button", name="Add a data set").click()
        page.locator("input[type=file]").last.set_input_files(rows)
        expect(page.locator("#training-setting-dataset input")).to_have_value("my-rows.jsonl", timeout=60_000)
        page.close()
        assert [path.name for path in (app.data / "uploads").rglob("*.jsonl")] == ["my-rows.jsonl"]
    assert (app.training.places.datasets / "my-rows.jsonl").read_bytes() == rows.read_bytes()
    assert not list((app.data / "uploads").rglob("*.jsonl"))
    app.close()


@pytest.fixture(scope="module")
def training_page(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path
) -> Iterator[tuple[Page, Path]]:
    """(the Training tab with the tiny model chosen, the folder of data sets)."""
    root = tmp_path_factory.mktemp("training")
    (root / "training" / "datasets").mkdir(parents=True)
    (root / "training" / "formats").symlink_to(ROOT / "training" / "formats")
    (root / "models").mkdir()
    (root / "models" / "tiny-llama").symlink_to(tiny_llama_folder)
    app = make_app(root, EchoModel())
    with serving(app) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.get_by_role("tab", name="Training").click()
        expect(page.locator("#training-setting-model input")).to_have_value("tiny-llama")
        page.get_by_role("button", name="Add a data set").click()
        yield page, app.training.places.datasets
        page.close()
    app.close()


def send(page: Page, path: Path, content: str | bytes) -> None:
    """Upload a file of that content, in place of the one before."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if (clear := page.get_by_label("Clear")).count():
        clear.first.click()
    page.locator("input[type=file]").last.set_input_files(path)


def test_an_upload_says_what_it_did_and_shows_it_within_its_card(training_page, tmp_path):
    page, _ = training_page
    send(page, tmp_path / "mini.json", json.dumps([{"instruction": f"q{n}", "output": "word " * 60} for n in range(10)]))
    expect(page.locator("#training-kept")).to_contain_text("mini.json · alpaca · 10 rows · 3220 tokens")
    expect(page.locator("#training-data")).to_contain_text("10 rows read, 10 good")
    expect(page.locator("#training-data mark").first).to_be_visible()
    expect(page.locator("#training-keep")).to_be_disabled()  # it would ask for rows that nobody wants to paste
    card = page.locator("#training-data")
    inside, shown, overflow = card.evaluate("(e) => [e.scrollHeight, e.clientHeight, getComputedStyle(e).overflowY]")
    assert inside > shown and overflow == "auto"
    through = """(card) => {
        card.scrollIntoView({block: "start"});
        const {left, right, bottom} = card.getBoundingClientRect();
        return card.contains(document.elementFromPoint((left + right) / 2, bottom + 4));
    }"""
    assert not card.evaluate(through), "rows show through what lies below the card"


def test_pasted_rows_are_kept_and_shown(training_page):
    page, datasets = training_page
    page.locator("#training-pasted textarea").fill('{"question": "a", "answer": "bb"}')
    expect(page.locator("#training-keep")).to_be_enabled()
    page.locator("#training-keep").click()
    expect(page.locator("#training-kept")).to_contain_text("pasted.jsonl · question-answer · 1 rows")
    expect(page.locator("#training-keep")).to_be_disabled()
    assert (datasets / "pasted.jsonl").is_file()


def test_another_encoding_is_named_and_converted_on_a_click(training_page, tmp_path):
    page, datasets = training_page
    send(page, tmp_path / "gbk.csv", "question,answer\n天空为什么是蓝色的,因为空气分子散射蓝光\n".encode("gbk"))
    expect(page.locator("#training-data")).to_contain_text("gbk.csv is not UTF-8 text. It is probably GBK")
    page.locator("#training-convert").click()
    expect(page.locator("#training-data mark").first).to_contain_text("因为空气分子散射蓝光")
    expect(page.locator("#training-convert")).to_be_hidden()
    assert "天空" in (datasets / "gbk.csv").read_text(encoding="utf-8")


def test_one_list_of_several_is_chosen_on_a_click(training_page, tmp_path):
    page, _ = training_page
    row = {"question": "a", "answer": "b"}
    send(page, tmp_path / "two.json", json.dumps({"train": [row] * 3, "test": [row]}))
    page.locator("#training-lists").get_by_text("test (1)").click()
    expect(page.locator("#training-data")).to_contain_text("1 rows read, 1 good")
    expect(page.locator("#training-setting-dataset input")).to_have_value("two.json:test")


def test_a_large_data_set_shows_its_beginning_and_then_all_its_counts(training_page, tmp_path):
    page, _ = training_page
    rows = [{"question": f"q{n}", "answer": "a" if n % 100 else None} for n in range(300)]
    send(page, tmp_path / "large.json", json.dumps(rows))
    expect(page.locator("#training-data")).to_contain_text("All rows are being counted")
    expect(page.locator("#training-data mark").first).to_be_visible()
    expect(page.locator("#training-data")).to_contain_text("300 rows read, 297 good, 3 no answer", timeout=120_000)
    expect(page.locator("#training-kept")).to_contain_text("large.json · question-answer · 300 rows")
