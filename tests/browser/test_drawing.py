"""What the page draws, and when: nothing while nothing happens, and a reply that grows without pulling people along."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, reply, say, until

pytestmark = pytest.mark.browser

COUNT_FRAMES = """
window.frames_asked = 0;
const frame = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (callback) => { window.frames_asked += 1; return frame(callback); };
"""
REST = "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight)(document.querySelector('.tl-scroll'))"


def longer(page: Page, characters: int) -> None:
    """Wait until the reply on its way has so many characters more."""
    body = "document.querySelector('.tl-last[data-role=assistant] .tl-body')"
    page.wait_for_function(f"{body} && {body}.innerText.length > 20")
    before = page.evaluate(f"{body}.innerText.length")
    page.wait_for_function(f"{body}.innerText.length > {before + characters}")


def test_a_page_that_does_nothing_asks_for_no_frames(site: Site):
    page = site.empty()
    page.add_init_script(COUNT_FRAMES)
    page.goto(site.url)
    page.wait_for_selector(".tl-composer textarea")
    say(page, "hello")
    reply(page)
    page.wait_for_selector("button[role=tab]")
    assert page.evaluate("window.frames_asked") > 0

    def asks_for_none() -> bool:
        page.evaluate("window.frames_asked = 0")
        page.wait_for_timeout(1000)
        return page.evaluate("window.frames_asked") <= 5

    until(page, asks_for_none)  # Gradio's loading screen swings for some seconds after it is gone


def test_nothing_moves_by_itself_while_a_reply_grows(site: Site):
    site.model.pace = 0.01
    site.model.reply = lambda request: "word " * 200
    page = site.open()
    say(page, "go on")
    longer(page, 100)
    moving = (
        "document.getAnimations().filter((each) => each.playState === 'running').map((each) => each.effect.target.outerHTML)"
    )
    assert page.evaluate(moving) == []
    expect(page.locator(".tl-last .tl-beat")).to_be_visible()


def test_people_at_the_end_stay_there_and_others_where_they_are(site: Site):
    site.model.pace = 0.06
    site.model.reply = lambda request: "ab\n\n" * 128
    page = site.open(height=500)
    say(page, "go on")
    page.wait_for_function("document.querySelector('.tl-scroll').scrollTop > 300")
    longer(page, 40)
    assert page.evaluate(REST) < 60
    page.mouse.move(640, 200)
    page.mouse.wheel(0, -400)
    page.wait_for_function(f"{REST} > 200")
    before = page.evaluate("document.querySelector('.tl-scroll').scrollTop")
    longer(page, 40)
    assert page.evaluate("document.querySelector('.tl-scroll').scrollTop") == before
    page.get_by_role("button", name="To the end").click()
    longer(page, 40)
    page.wait_for_function(f"{REST} < 60")
    site.model.pace = 0
    assert reply(page).count("ab") == 128


def test_selected_words_stay_selected_while_their_paragraph_grows(site: Site):
    site.model.pace = 0.01
    site.model.reply = lambda request: "some **bold** and plain " + "words " * 100
    page = site.open()
    say(page, "go on")
    longer(page, 20)
    page.evaluate("""
        const paragraph = document.querySelector('.tl-last .tl-body p');
        getSelection().setBaseAndExtent(paragraph.firstChild, 0, paragraph.lastChild, 10);
    """)
    longer(page, 100)
    assert page.evaluate("getSelection().toString()") == "some bold and plain"


EVERYTHING = """<think>
Is 1 < 2 & 3 > 2?
It is.
</think>

Plain, *soft*, **loud *both***, `code <b>`, a < b & c, &amp; and a [link](https://example.org/a?b=1&c=2).
A second line, $a < b$ and then

1. one
   - nested & more
2. two

> quoted
> twice

| a | b |
|---|--:|
| x | 1 |
| y & z | 2 |

```python
def f(x):
    return x < 1 and "a & b"
```

    indented
    code

# A title
<div onclick="x">shown as text</div>

The end, 中文 too 😀.
"""


def test_what_grew_letter_by_letter_is_what_a_reload_shows(site: Site):
    site.model.pace = 0.012
    site.model.reply = lambda request: EVERYTHING
    page = site.open()
    say(page, "everything")
    page.wait_for_selector(".tl-last[data-role=assistant][data-state=whole]")
    body = "document.querySelector('.tl-last .tl-body').innerHTML"
    grown = page.evaluate(body)
    assert "中文 too 😀" in grown and "nested &amp; more" in grown
    page.reload()
    expect(page.locator(".tl-last .tl-body")).to_contain_text("中文 too 😀.")
    assert page.evaluate(body) == grown
