"""Hostile words run nothing, wherever they come from: replies, titles, names, characters, imported files."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from modules.library.character import Character
from tests.browser.conftest import Site, reply, say

pytestmark = pytest.mark.browser

RUN = "window.hacked = 1"
HOSTILE = "\n\n".join(
    [
        f"<script>{RUN}</script><img src=x onerror='{RUN}'><svg onload='{RUN}'><svg><script>{RUN}</script></svg>",
        f"[a](javascript:{RUN}) [b](JaVaScRiPt:{RUN}) [c](data:text/html,<script>{RUN}</script>) [d](vbscript:x) <javascript:{RUN}>",
        f'![x](x" onerror="{RUN}) ![y](javascript:{RUN})',
        f"$\\text{{<img src=x onerror='{RUN}'>}}$ $\\href{{javascript:{RUN}}}{{x}}$ $</annotation></math><img src=x onerror='{RUN}'>$",
        f"<math><mtext><table><mglyph><style><img src=x onerror='{RUN}'></style></mglyph></table></mtext></math>",
        f"<math href='javascript:{RUN}'>x</math><annotation-xml encoding='text/html'><img src=x onerror='{RUN}'></annotation-xml>",
        f"```html\"><img src=x onerror='{RUN}'>\n<img src=x onerror='{RUN}'>\n```",
        f"| <img src=x onerror='{RUN}'> |\n|---|\n| <iframe srcdoc='<script>parent.{RUN}</script>'> |",
        f"<details open ontoggle='{RUN}'><template><img src=x onerror='{RUN}'>",
        f"<think><img src=x onerror='{RUN}'>",
        f"<a href='x' onmouseover='{RUN}'>unclosed <style>@import 'x'; <textarea><title><noscript><img src=x onerror='{RUN}'>",
        "${window.hacked = 1} {{ 7 * 7 }}",
    ]
)


@pytest.fixture(autouse=True)
def long_replies(site: Site) -> None:
    """All of it is said: it is longer than replies usually may be."""
    site.app.store.for_owner("local").preferences.set("sampling", {"values": {"max_tokens": 3500}, "preset": None})


def unharmed(site: Site, page) -> None:
    """Nothing ran, no element is there that could have, and no link leads to a script."""
    for link in page.locator(".tl-body a").all():
        assert (link.get_attribute("href") or "").split(":")[0].lower() not in ("javascript", "data", "vbscript")
    dangerous = (
        ".tl-body :is(script, iframe, object, embed, style, svg:not(.tl-icon), form, template, [onerror], [onload], [ontoggle])"
    )
    assert page.locator(dangerous).count() == 0
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None


def test_a_reply_runs_nothing_while_it_streams_and_after(site: Site):
    site.model.reply, site.model.pace = (lambda request: HOSTILE), 0.0002
    page = site.open()
    say(page, HOSTILE)
    expect(page.locator(".tl-message.tl-last")).to_have_attribute("data-state", "whole")
    expect(page.locator(".tl-message.tl-last .tl-body")).to_contain_text("{{ 7 * 7 }}")
    unharmed(site, page)
    page.reload()
    expect(page.locator(".tl-message")).to_have_count(2)
    unharmed(site, page)


def test_names_titles_and_imported_files_run_nothing(site: Site):
    image = f"<img src=x onerror='{RUN}'>"
    name = "＜b＞" + "&lt;i&gt; ${window.hacked=1}"
    site.app.characters.save("local", Character(name, image + HOSTILE[:2000], HOSTILE, HOSTILE))
    site.app.store.for_owner("local").preferences.set("name", image)
    page = site.open()
    page.locator(".tl-character").click()
    expect(page.locator(".tl-who")).to_have_count(1)
    page.locator(".tl-who-begin").click()
    expect(page.locator(".tl-speaker")).to_contain_text("${window.hacked=1}")
    say(page, "hello")
    expect(page.locator(".tl-message")).to_have_count(3)
    reply(page)
    expect(page.locator(".tl-speaker").nth(1)).to_contain_text("onerror")
    unharmed(site, page)
    message = {"role": "assistant", "content": HOSTILE, "model": image, "extra": {"runs": [image], "note": image}}
    asked = {"role": "user", "content": HOSTILE}
    figures = {"tokens": 3, "error": image, "preset": image, "adapter": image}
    chat = {
        "textloom": 1,
        "title": image,
        "titled": True,
        "messages": [asked, {**message, "parent": 0, "figures": figures, "state": "cut"}],
    }
    script = """([name, text]) => {
        const data = new DataTransfer();
        data.items.add(new File([text], name));
        document.querySelector(".tl-side").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(script, ["x.json", json.dumps(chat)])
    expect(page.locator(".tl-current .tl-row-title")).to_have_text(image)
    expect(page.locator(".tl-note").last).to_contain_text("onerror")
    unharmed(site, page)
    page.get_by_role("searchbox").fill("onerror")
    expect(page.locator(".tl-row-found").first).to_be_visible()
    page.locator(".tl-row.tl-current").hover()
    page.locator(".tl-row.tl-current").get_by_role("button").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(page.locator(".tl-toast").last).to_contain_text("onerror")
    unharmed(site, page)
