"""The Training tab without training: numbers of any magnitude are written, and what a stopped run offers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from modules.training import events, process
from modules.training.checkpoints import new_checkpoint
from modules.training.config import TrainingConfig
from modules.training.folder import Plan, RunFolder
from tests.browser.conftest import Site

pytestmark = pytest.mark.browser


def open_tab(site: Site) -> Page:
    page = site.open()
    page.evaluate("TEXTLOOM.openTab('training')")
    expect(page.locator("#tab-training")).to_be_visible()
    return page


@pytest.fixture
def running(site: Site, tmp_path: Path) -> Iterator[RunFolder]:
    """A run in its first step, in a process that does nothing."""
    folder = RunFolder(site.app.training.runs / "20260101-000000-facts")
    config = TrainingConfig(name="facts", model="tiny-llama", dataset="facts.json")
    folder.create(config, Plan("", str(tmp_path / "facts"), "", "", ""))
    pid = process.start(["sleep", "600"], cwd=tmp_path, log=folder.log, mark=folder.process, environment={})
    events.append_event(folder.events, events.Started(0, 9, 1, "cpu", "float32", 10, 1000))
    events.append_event(folder.events, events.Stepped(1, 0.1, 2.0, 1e-4, 1.0, 100, 0.5, 10**9))
    yield folder
    process.kill_group(pid)
    shutil.rmtree(site.app.training.runs)


def test_after_stop_and_save_the_adapter_is_offered_and_both_stop_buttons_are_gone(site: Site, running: RunFolder):
    page = open_tab(site)
    buttons = page.locator(".tl-run-buttons")
    stop, now, use = (buttons.get_by_role("button", name=name) for name in ("Stop and save", "Stop now", "Use in chat"))
    expect(now).to_be_enabled()
    expect(use).to_have_count(0)
    stop.click()
    expect(buttons.get_by_role("button", name="Saving…")).to_be_disabled()
    expect(now).to_be_disabled()
    with new_checkpoint(running.checkpoints, 1) as draft:
        (draft / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    events.append_event(running.events, events.Saved(1, "step-000001"))
    events.append_event(running.events, events.Stopped(1))
    expect(use).to_be_enabled()
    expect(buttons.get_by_role("button", name="Resume")).to_be_enabled()
    expect(stop).to_have_count(0)
    expect(now).to_have_count(0)


def test_a_learning_rate_is_written_and_no_touch_changes_it(site: Site):
    page = open_tab(site)
    page.get_by_role("button", name="Optimiser").click()
    box = page.locator("#training-setting-learning_rate").locator("input, textarea")
    expect(box).to_have_value("0.0002")
    box.press("ArrowUp")
    expect(box).to_have_value("0.0002")
    expect(page.locator("#training-setting-learning_rate input[type=range]")).to_have_count(0)
    box.fill("two")
    page.locator("#training-start").click()
    expect(page.locator(".toast-body")).to_contain_text("Learning rate: write a number, such as 0.0002 or 2e-4.")
