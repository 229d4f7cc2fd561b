"""The whole program as people use it: server.py, a real model and a real browser, and a kill -9 in the middle of a reply."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import PATIENCE, reply, say
from tests.serving import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]
LAST = ".tl-message.tl-last"


def length_of_reply(page: Page) -> int:
    return len(page.locator(f"{LAST}[data-role=assistant] .tl-body").inner_text())


def wait_for_length(page: Page, length: int) -> None:
    page.wait_for_function(
        f"(document.querySelector('.tl-last[data-role=assistant] .tl-body')?.innerText ?? '').length > {length}",
        timeout=120_000,
    )


def test_a_question_grows_stops_is_found_again_and_survives_kill_9(browser: Browser, starter_gguf: Path, tmp_path: Path):
    # The model may not end a reply by itself, so that there is something to stop and to kill.
    endless = ["--ban-eos", "--max-tokens", "1500"]
    server = Server(["--model", starter_gguf.name, "--ctx-size", "4096", "--max-parallel", "2", *endless], data=tmp_path)
    page = browser.new_context(locale="en-US").new_page()
    page.set_default_timeout(PATIENCE)
    with server:
        page.goto(server.url)
        expect(page.locator(".tl-model")).to_have_attribute("data-state", "ready")
        say(page, "Tell me a long story about a lighthouse.")
        wait_for_length(page, 20)
        first = length_of_reply(page)
        wait_for_length(page, first + 20)
        page.keyboard.press("Escape")
        expect(page.locator(LAST)).to_have_attribute("data-state", "cut")
        stopped = reply(page)
        assert len(stopped) > first

        page.reload()
        expect(page.locator(f"{LAST} .tl-note")).to_contain_text("Stopped.")
        assert reply(page) == stopped

        say(page, "Tell me another one, even longer.")
        wait_for_length(page, 150)
        page.wait_for_timeout(1500)
        seen = length_of_reply(page)
        server.kill()
        server.start()
        page.reload()
        expect(page.locator(".tl-message")).to_have_count(4)
        expect(page.locator(LAST)).to_have_attribute("data-state", "cut")
        expect(page.locator(f"{LAST} .tl-note")).to_contain_text("the server ended")
        kept = length_of_reply(page)
        assert 0 < kept <= seen + 2000
        page.locator(f"{LAST} .tl-note").get_by_role("button", name="Continue").click()
        wait_for_length(page, kept + 10)
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(LAST)).to_have_attribute("data-state", "cut")
    with sqlite3.connect(tmp_path / "textloom.sqlite3") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    page.context.close()
