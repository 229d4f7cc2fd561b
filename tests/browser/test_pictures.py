"""Pictures in messages, driven in a real browser: chosen, pasted, dropped, shown, and greyed out where the model is blind."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from modules.generation.types import Image
from tests.browser.conftest import Site, reply, say
from tests.chats.test_transfer import png
from tests.fakes import EVERYTHING

pytestmark = pytest.mark.browser


@pytest.fixture(autouse=True)
def sees(site: Site) -> Iterator[None]:
    site.model.capabilities = EVERYTHING
    site.model.chat_template = (
        "{% for m in messages %}{{ m.content if m.content is string else m.content[-1].text }}\n{% endfor %}"
    )
    yield
    site.model.capabilities = EVERYTHING


def give(page: Page, kind: str, target: str, data: bytes) -> None:
    """Paste or drop a file of these bytes."""
    script = """([kind, target, text]) => {
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], "it.png", {type: "image/png"}));
        const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true})
            : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.querySelector(target).dispatchEvent(event);
    }"""
    page.evaluate(script, [kind, target, base64.b64encode(data).decode()])


def test_pictures_are_attached_in_three_ways_sent_and_shown(site: Site, tmp_path: Path):
    (tmp_path / "red.png").write_bytes(png("red"))
    page = site.open()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Attach files").click()
    chooser.value.set_files(tmp_path / "red.png")
    expect(page.locator(".tl-attached")).to_have_count(1)
    give(page, "paste", ".tl-composer textarea", png("blue"))
    expect(page.locator(".tl-attached")).to_have_count(2)
    give(page, "drop", ".tl-scroll", png("green"))
    expect(page.locator(".tl-attached")).to_have_count(3)
    page.get_by_role("button", name="Remove picture 2").click()
    expect(page.locator(".tl-attached")).to_have_count(2)
    page.reload()
    expect(page.locator(".tl-attached")).to_have_count(2)
    say(page, "What is this?")
    reply(page)
    expect(page.locator(".tl-attached")).to_have_count(0)
    assert site.model.requests[-1].prompt[-1].images == (Image(png("red")), Image(png("green")))  # type: ignore[union-attr]
    expect(page.locator(".tl-pictures img")).to_have_count(2)
    assert page.locator(".tl-pictures img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
    page.reload()
    page.get_by_role("button", name="Picture 1").click()
    expect(page.locator("dialog .tl-picture-whole")).to_be_visible()
    page.keyboard.press("Escape")
    say(page, "And again?")
    expect(page.locator(".tl-message")).to_have_count(4)
    reply(page)
    assert len(site.model.requests[-1].prompt[0].images) == 2  # type: ignore[union-attr]
    page.locator(".tl-message").first.hover()
    page.locator(".tl-message").first.get_by_role("button", name="Edit").click()
    page.locator(".tl-edit").fill("What are these?")
    page.get_by_role("button", name="Save and send").click()
    expect(page.locator(".tl-message")).to_have_count(2)
    reply(page)
    expect(page.locator(".tl-pictures img")).to_have_count(2)


def test_a_picture_can_be_sent_without_a_word(site: Site):
    page = site.open()
    give(page, "paste", ".tl-composer textarea", png("red"))
    expect(page.locator(".tl-attached")).to_have_count(1)
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".tl-message")).to_have_count(2)
    reply(page)
    expect(page.locator(".tl-pictures img")).to_have_count(1)


def test_a_model_that_cannot_see_says_so(site: Site):
    page = site.open()
    give(page, "paste", ".tl-composer textarea", png("red"))
    expect(page.locator(".tl-attached")).to_have_count(1)
    site.model.capabilities = dataclasses.replace(EVERYTHING, images=False)
    button = page.locator(".tl-attach")
    expect(button).to_have_attribute("title", "Attach files (echo cannot see pictures.)")
    say(page, "look")
    expect(page.locator(".tl-toast.tl-wrong")).to_contain_text("cannot see pictures")
    expect(page.locator(".tl-attached")).to_have_count(1)
    expect(page.locator(".tl-composer textarea")).to_have_value("look")
    page.get_by_role("button", name="Remove picture 1").click()
    give(page, "paste", ".tl-composer textarea", png("red"))
    expect(page.locator(".tl-toast").last).to_contain_text("echo cannot see pictures.")
    expect(page.locator(".tl-attached")).to_have_count(0)


def test_what_is_no_picture_is_refused(site: Site):
    page = site.open()
    give(page, "drop", ".tl-scroll", b"<svg xmlns='http://www.w3.org/2000/svg' onload='window.hacked = 1'/>")
    expect(page.locator(".tl-toast.tl-wrong")).to_contain_text("cannot be read")
    assert page.evaluate("window.hacked") is None
