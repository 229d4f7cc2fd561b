"""Words of Chinese, Japanese and Korean are typed with an input method: the keys that it takes do nothing on the page.

Safari tells of the Enter that ends a word after the word has ended: not as composing, only by the key code 229.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, say

pytestmark = pytest.mark.browser


def press_in_safari(page: Page, key: str) -> None:
    """A key that the input method takes, as Safari tells of it."""
    session = page.context.new_cdp_session(page)
    pressed = {"key": key, "code": key, "windowsVirtualKeyCode": 229}
    session.send("Input.dispatchKeyEvent", {"type": "keyDown", **pressed, **({"text": "\r"} if key == "Enter" else {})})
    session.send("Input.dispatchKeyEvent", {"type": "keyUp", **pressed, "windowsVirtualKeyCode": 13})
    session.detach()


def test_the_enter_that_ends_a_word_sends_no_message(site: Site):
    page = site.open()
    box = page.locator(".tl-composer textarea")
    box.fill("你好")
    press_in_safari(page, "Enter")
    expect(box).to_have_value("你好")
    box.press("Enter")
    expect(page.locator(".tl-message[data-role=user]")).to_have_count(1)


def test_it_saves_no_edit_and_escape_keeps_the_editor(site: Site):
    page = site.open()
    say(page, "今天天气")
    page.locator(".tl-composer textarea").press("ArrowUp")
    area = page.locator(".tl-edit")
    area.fill("明天天气")
    press_in_safari(page, "Enter")
    press_in_safari(page, "Escape")
    expect(area).to_have_value("明天天气")
    assert len(site.model.requests) == 1
    area.press("Enter")
    expect(page.locator(".tl-message[data-role=user] .tl-body")).to_have_text("明天天气")


def test_it_closes_no_dialog_that_asks_for_a_name(site: Site):
    page = site.open()
    say(page, "rename me")
    page.locator(".tl-row.tl-current").hover()
    page.locator(".tl-row.tl-current").get_by_role("button").click()
    page.get_by_role("menuitem", name="Rename").click()
    title = page.locator(".tl-dialog input[name=title]")
    title.fill("图书")
    press_in_safari(page, "Enter")
    expect(title).to_have_value("图书")
    title.fill("图书馆")
    title.press("Enter")
    expect(page.locator(".tl-current .tl-row-title")).to_have_text("图书馆")


def test_escape_ends_the_word_and_not_the_search(site: Site):
    page = site.open()
    search = page.locator(".tl-search input")
    search.fill("图书")
    press_in_safari(page, "Escape")
    expect(search).to_have_value("图书")
    search.press("Escape")
    expect(search).to_have_value("")


def test_it_asks_nothing_where_an_adapter_is_compared(site: Site):
    page = site.open()
    page.evaluate(
        """async () => {
            const {Comparison} = await import("./chats/static/training_compare.js");
            const comparison = new Comparison();
            window.asked = 0;
            comparison.ask = () => { window.asked += 1; };
            comparison.element.open = true;
            document.querySelector(".tl-scroll").prepend(comparison.element);
            comparison.question.focus();
        }"""
    )
    press_in_safari(page, "Enter")
    assert page.evaluate("window.asked") == 0
    page.keyboard.press("Enter")
    assert page.evaluate("window.asked") == 1
