"""A file of training data sent by the page: it goes through Gradio's own upload, and becomes a data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.fakes import EchoModel
from tests.in_process import make_app, serving

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
