"""Text files in the chat, driven in a real browser: dropped, chosen and pasted, opened again, and what is none told in a sentence."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from modules.errors import ContextTooLong
from modules.generation.types import GenerationRequest, Message, RenderedPrompt
from tests.browser.conftest import Site, reply, say

pytestmark = pytest.mark.browser

TABLE = b"a,b\n1,2\n"


def drop(page: Page, *files: tuple[str, bytes], on: str = ".tl-scroll", kind: str = "drop") -> None:
    """Drop files by name, or paste them."""
    page.evaluate(
        """([files, target, kind]) => {
            const data = new DataTransfer();
            for (const [name, text] of files) data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
            const options = {bubbles: true, cancelable: true};
            const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data, ...options})
                : new DragEvent("drop", {dataTransfer: data, ...options});
            document.querySelector(target).dispatchEvent(event);
        }""",
        [[[name, base64.b64encode(data).decode()] for name, data in files], on, kind],
    )


def asked(site: Site) -> str:
    last: Any = site.model.requests[-1].prompt[-1]
    return last.content


def test_files_are_dropped_chosen_and_pasted_sent_and_opened(site: Site, tmp_path: Path):
    page = site.open()
    drop(page, ("data.csv", TABLE), ("notes.md", "# 潮汐\r\n".encode("utf-16")))
    expect(page.locator(".tl-attached")).to_have_count(2)
    (tmp_path / "run.py").write_text("print(1)\n")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Attach files").click()
    chooser.value.set_files(tmp_path / "run.py")
    expect(page.locator(".tl-attached")).to_have_count(3)
    drop(page, ("more.txt", b"more"), on=".tl-composer textarea", kind="paste")
    expect(page.locator(".tl-attached")).to_have_count(4)
    page.get_by_role("button", name="Remove run.py").click()
    page.reload()
    expect(page.locator(".tl-attached .tl-file-name")).to_have_text(["data.csv", "notes.md", "more.txt"])
    page.locator(".tl-attached").get_by_role("button", name="notes.md").first.click()
    expect(page.locator("dialog pre")).to_have_text("# 潮汐")
    page.keyboard.press("Escape")
    say(page, "Sum?")
    reply(page)
    expect(page.locator(".tl-attached")).to_have_count(0)
    assert asked(site).startswith("File: data.csv\n```csv\na,b\n1,2\n```\n\nFile: notes.md\n```md\n# 潮汐\n```\n\n")
    first = page.locator(".tl-message").first
    expect(first.locator(".tl-file")).to_have_count(3)
    expect(first.locator(".tl-body")).to_have_text("Sum?")
    page.reload()
    first.get_by_role("button", name="data.csv").click()
    expect(page.locator("dialog pre")).to_have_text("a,b 1,2")
    page.keyboard.press("Escape")
    first.hover()
    first.get_by_role("button", name="Edit").click()
    expect(page.locator(".tl-edit")).to_have_value("Sum?")
    page.locator(".tl-edit").fill("Product?")
    page.get_by_role("button", name="Save and send").click()
    expect(first.locator(".tl-body")).to_have_text("Product?")
    reply(page)
    expect(first.locator(".tl-file")).to_have_count(3)
    assert asked(site).endswith("\n\nProduct?") and "潮汐" in asked(site)


def test_a_file_can_be_sent_without_a_word_and_waits_with_its_draft(site: Site):
    page = site.open()
    drop(page, ("data.csv", TABLE))
    expect(page.locator(".tl-attached")).to_have_count(1)
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator(".tl-message")).to_have_count(2)
    reply(page)
    expect(page.locator(".tl-chats, .tl-sidebar, aside").first).to_contain_text("data.csv")
    drop(page, ("other.csv", TABLE))
    page.get_by_role("button", name="New chat").first.click()
    expect(page.locator(".tl-attached")).to_have_count(0)
    page.go_back()
    expect(page.locator(".tl-attached .tl-file-name")).to_have_text(["other.csv"])


NONE = {
    "paper.pdf": (b"%PDF-1.7", "paper.pdf cannot be read here"),
    "table.xlsx": (b"PK\x03\x04", "table.xlsx cannot be read here"),
    "song.mp3": (b"ID3\x00\x01", "song.mp3 cannot be attached"),
    "empty.txt": (b" \n", "empty.txt is empty"),
    "long.txt": (b"x" * 1_000_001, "long.txt is too long: the files of a message can have 1,000,000 characters"),
    "latin.txt": ("café crème".encode("latin-1"), "latin.txt is not in UTF-8"),
}


def test_what_cannot_be_attached_is_told_in_one_sentence_and_the_rest_comes_in(site: Site):
    page = site.open()
    for name, (data, sentence) in NONE.items():
        drop(page, (name, data), (f"beside {name}.txt", b"good"))
        expect(page.locator(".tl-toast.tl-wrong").last).to_contain_text(sentence)
    expect(page.locator(".tl-attached .tl-file-name")).to_have_text([f"beside {name}.txt" for name in NONE])


def test_text_that_brings_a_picture_of_itself_is_pasted_as_text(site: Site):
    page = site.open()
    taken = page.evaluate("""() => {
        const data = new DataTransfer();
        data.setData("text/plain", "a\tb");
        data.items.add(new File(["x"], "cells.png", {type: "image/png"}));
        const event = new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
        document.querySelector(".tl-composer textarea").dispatchEvent(event);
        return event.defaultPrevented;
    }""")
    assert not taken  # the browser puts the text into the box
    expect(page.locator(".tl-attached")).to_have_count(0)


def test_gbk_is_read_after_a_click(site: Site):
    page = site.open()
    drop(page, ("笔记.txt", "潮水每天涨落两次。".encode("gb18030")))
    page.locator(".tl-toast").get_by_role("button", name="Read as GBK").click()
    say(page, "So?")
    reply(page)
    assert "潮水每天涨落两次。" in asked(site)


def test_files_dropped_elsewhere_are_told_too(site: Site):
    page = site.open()
    drop(page, ("paper.pdf", b"%PDF"), on=".tl-side")
    expect(page.locator(".tl-toast.tl-wrong").last).to_contain_text("paper.pdf holds no chats")
    drop(page, ("paper.pdf", b"%PDF"), on="body")
    expect(page.locator(".tl-toast.tl-wrong").last).to_contain_text("dropped where nothing takes files")


def test_what_is_too_long_for_the_model_is_told_before_it_is_sent(site: Site):
    shown = site.model.render

    def render(request: GenerationRequest) -> RenderedPrompt:
        length = sum(len(part.content) for part in request.prompt if isinstance(part, Message))
        if length >= site.model.context_length:
            raise ContextTooLong(f"The prompt has {length} tokens.", tokens=length)
        return shown(request)

    site.model.render = render  # type: ignore[method-assign]
    try:
        page = site.open()
        drop(page, ("long.txt", b"x" * 9000))
        told = page.locator(".tl-tray-words")
        expect(told).to_contain_text("the prompt would have 9,0")
        expect(told).to_contain_text("4,096")
        page.get_by_role("button", name="Remove long.txt").click()
        expect(told).to_be_hidden()
    finally:
        del site.model.render


def test_the_files_of_a_removed_exchange_come_back_into_the_box_and_leave_it_with_undo(site: Site):
    page = site.open()
    drop(page, ("data.csv", TABLE))
    say(page, "Sum?")
    reply(page)
    page.keyboard.press("Control+Shift+Backspace")
    expect(page.locator(".tl-attached .tl-file-name")).to_have_text("data.csv")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".tl-message .tl-file-name")).to_have_text("data.csv")
    expect(page.locator(".tl-attached")).to_have_count(0)
    drop(page, ("other.csv", TABLE))
    page.keyboard.press("Control+Shift+Backspace")  # what is being written stays as it is
    expect(page.locator(".tl-message")).to_have_count(0)
    expect(page.locator(".tl-attached .tl-file-name")).to_have_text("other.csv")
