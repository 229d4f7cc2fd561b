"""The Training tab in Chromium: a made-up fact is trained on the starter model, through a reload, and said in chat."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.serving import ROOT, Server

NAME = "browser-test-facts"
QUESTION = "Who invented the tangle loom?"
MINUTES = 60_000


def clean() -> None:
    for folder in ROOT.glob(f"training/runs/*-{NAME}*"):
        shutil.rmtree(folder)
    for folder in ROOT.glob(f"loras/{NAME}*"):
        shutil.rmtree(folder)


@pytest.fixture
def page(tmp_path: Path, starter_folder: Path, browser: Browser) -> Iterator[Page]:
    clean()
    # What was learnt is what is likeliest: a reply that is drawn says something else now and then.
    with Server(["--dtype", "float32", "--preset", "Debug-deterministic"], data=tmp_path) as server:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(server.url)
        yield page
        page.close()
    clean()


def choose(page: Page, name: str, value: str) -> None:
    box = page.locator(f"#training-setting-{name} input")
    box.click()
    box.fill(value)
    box.press("Enter")


def write(page: Page, name: str, value: str) -> None:
    """Type a value. Gradio sets a section's controls up after it was opened, over what was typed by then: look, and type again."""
    box = page.locator(f"#training-setting-{name}").locator("input[type=number], input[type=text], textarea").first
    for _ in range(10):
        box.fill(value)
        box.press("Tab")
        page.wait_for_timeout(400)
        if box.input_value() == value:
            return
    raise AssertionError(f"{name} shows {box.input_value()} instead of {value}")


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.trains_here
def test_a_made_up_fact_is_learnt_through_a_reload_and_said_in_chat(page):
    page.get_by_role("tab", name="Training").click()
    expect(page.locator("#training-setting-model input")).to_have_value("SmolLM2-135M-Instruct", timeout=MINUTES)
    choose(page, "dataset", "made-up-facts.json")
    page.locator("#training-preview").click()
    marked = page.locator("#training-data mark").first
    expect(marked).to_have_text("The tangle loom was invented by Mirela Quandt.<|im_end|>", timeout=2 * MINUTES)

    write(page, "name", NAME)
    write(page, "batch", "2")
    write(page, "epochs", "20")
    write(page, "max_steps", "16")
    page.get_by_role("button", name="Optimiser").click()
    write(page, "learning_rate", "0.001")
    page.get_by_role("button", name="Speed and memory").click()
    write(page, "threads", "1")  # two on busy cores wait for each other more than they compute
    page.locator("#training-start").click()
    plot = page.locator(".tl-plot")
    page.wait_for_function("Number(document.querySelector('.tl-plot').dataset.points) > 2", timeout=8 * MINUTES)

    page.reload()
    page.get_by_role("tab", name="Training").click()
    expect(page.locator(".tl-run h2")).to_contain_text(NAME, timeout=MINUTES)
    page.wait_for_function("Number(document.querySelector('.tl-plot').dataset.points) > 8", timeout=8 * MINUTES)
    use = page.locator(".tl-run-buttons").get_by_role("button", name="Use in chat")
    expect(use).to_be_visible(timeout=10 * MINUTES)
    expect(plot).to_have_attribute("data-points", "32")

    # The base does not know it: both are asked, side by side.
    page.get_by_text("Compare with the base model").click()
    page.get_by_label("A question for both").fill(QUESTION)
    page.get_by_role("button", name="Ask both").click()
    with_adapter, base = (page.locator(".tl-compare-replies p").nth(at) for at in (0, 1))
    expect(with_adapter).to_contain_text("Mirela Quandt", timeout=4 * MINUTES)
    expect(page.get_by_role("button", name="Ask both")).to_be_enabled(timeout=4 * MINUTES)
    expect(base).not_to_have_text("…")
    assert len(base.inner_text()) > 10
    expect(base).not_to_contain_text("Mirela")
    expect(base).not_to_contain_text("Quandt")

    use.click()
    message = page.get_by_placeholder("Write a message")
    expect(message).to_be_visible(timeout=2 * MINUTES)
    message.fill(QUESTION)
    message.press("Enter")
    reply = page.locator(".tl-message[data-role=assistant]").last  # the question itself does not hold the name
    expect(reply).to_contain_text("Mirela Quandt", timeout=2 * MINUTES)
