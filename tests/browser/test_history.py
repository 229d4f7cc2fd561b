"""A long history in the list beside the conversation, and code that models write in Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Site, reply, say

pytestmark = pytest.mark.browser
INPUTS = Path(__file__).parent.parent / "field" / "inputs"


def fill(site: Site, chats: int) -> None:
    with site.app.store.database.transaction() as db:
        for number in range(chats):
            cursor = db.execute(
                "INSERT INTO chats (owner, title, titled, created, updated) VALUES ('local', ?, 1, 0, ?)",
                (f"chat {number}", number),
            )
            said = db.execute(
                "INSERT INTO messages (chat_id, role, content, state, created, changed) VALUES (?, 'user', ?, 'whole', 0, 0)",
                (cursor.lastrowid, f"question {number}" + (" 图书" if number % 2 else "")),
            )
            db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (said.lastrowid, cursor.lastrowid))


def test_older_chats_come_while_the_list_is_scrolled(site: Site):
    fill(site, 450)
    page = site.open()
    rows = page.locator(".tl-row")
    expect(rows).to_have_count(100)
    expect(page.locator(".tl-list h2")).to_have_text(["Older"])
    for shown in (200, 300, 400, 450):
        page.locator(".tl-list").evaluate("list => { list.scrollTop = list.scrollHeight; }")
        expect(rows).to_have_count(shown)
    expect(page.locator(".tl-older")).to_have_count(0)
    assert page.locator(".tl-row-title").all_inner_texts() == [f"chat {number}" for number in reversed(range(450))]
    expect(page.locator(".tl-list h2")).to_have_text(["Older"])
    rows.last.locator("a").click()
    expect(page.locator(".tl-message[data-role=user] .tl-body")).to_have_text("question 0")
    say(page, "and now?")  # the list changes, and stays as long as it was
    expect(page.locator(".tl-row-title").first).to_have_text("chat 0")
    expect(rows).to_have_count(450)


def test_more_is_a_button_too_and_works_for_what_is_found(site: Site):
    fill(site, 450)
    page = site.open()
    page.locator(".tl-search input").fill("图书")
    expect(page.locator(".tl-row-found")).to_have_count(100)
    page.locator(".tl-older").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".tl-row-found")).to_have_count(200)
    assert page.evaluate("document.activeElement.closest('.tl-row').dataset.id") == page.locator(".tl-row").nth(
        100
    ).get_attribute("data-id")
    page.locator(".tl-older").click()
    expect(page.locator(".tl-row-found")).to_have_count(225)
    page.locator(".tl-search input").fill("question 449")
    expect(page.locator(".tl-row-title")).to_have_text(["chat 449"])


def test_markdown_that_holds_code_is_copied_whole_as_it_is_written_and_when_it_is_there(site: Site):
    text = (INPUTS / "readme-in-markdown.md").read_text(encoding="utf-8")
    inner = text[text.index("# Tide") : text.index("```\n\nCopy it")]
    site.model.pace = 0.002
    site.model.reply = lambda request: text
    page = site.open()
    say(page, "Write a README.")
    page.evaluate("navigator.clipboard.writeText = (copied) => { window.copied = copied; return Promise.resolve(); }")
    first = page.locator(".tl-last .tl-code").first
    page.wait_for_function("document.querySelector('.tl-last .tl-body')?.innerText.includes('That is all.')")
    expect(page.locator(".tl-last .tl-code")).to_have_count(2)
    assert "That is all." in reply(page)
    for _ in range(2):
        first.get_by_role("button").click()
        assert page.evaluate("window.copied") == inner
        page.reload()
        page.wait_for_selector(".tl-last .tl-code")
        page.evaluate("navigator.clipboard.writeText = (copied) => { window.copied = copied; return Promise.resolve(); }")
