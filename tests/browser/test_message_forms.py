"""Formulas, tasks, addresses and wide things in a reply, measured in a real browser, light and dark, wide and on a phone."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, reply, say

pytestmark = pytest.mark.browser

TEXT = r"""
- [x] done

- [ ] to do, see https://example.org/a_b.

$$\lim_{x \to 0} f(x) = \int_0^1 x\,dx, \quad A = \begin{pmatrix} a \\ b \\ c \end{pmatrix}, \quad \boxed{x}$$

$$a_1 WIDE$$

In a line: $a_1 WIDE$, and on.

| one | two |
|---|---|
| xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx | yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy |

```python
a_long_line = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
```
""".replace("WIDE", " + ".join(f"b_{{{number}}}" for number in range(40)))


def box(page: Page, selector: str) -> dict[str, float]:
    """Of the first element that fits within the last reply: top, bottom, height."""
    return page.evaluate(
        "selector => { const {top, bottom, height} = document.querySelector(`.tl-last math${selector}`).getBoundingClientRect();"
        " return {top, bottom, height}; }",
        selector,
    )


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_what_a_reply_holds_looks_as_meant(site: Site, scheme: str, width: int):
    site.model.reply = lambda request: TEXT
    site.app.store.for_owner("local").preferences.set("sampling", {"values": {"max_tokens": 3000}, "preset": None})
    page = site.open(width=width, color_scheme=scheme)
    say(page, "Go")
    reply(page)
    page.wait_for_function("document.fonts.check('16px \"Textloom Math\"') && document.fonts.status === 'loaded'")

    ticks = page.locator(".tl-last .task-list-item input")
    looks = ticks.evaluate_all(
        "boxes => boxes.map(box => [getComputedStyle(box).backgroundImage, getComputedStyle(box).opacity])"
    )
    assert [image.startswith('url("data:image/svg+xml') for image, _ in looks] == [True, False]
    assert [opacity for _, opacity in looks] == ["1", "1"]
    expect(page.locator(".tl-last a")).to_have_attribute("href", "https://example.org/a_b")

    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('.tl-last math')).fontSize)")
    name, limit = box(page, " munder > :nth-child(1)"), box(page, " munder > :nth-child(2)")
    assert limit["top"] >= name["top"] + name["height"] / 2 and limit["bottom"] > name["bottom"]
    assert box(page, " msubsup > mo")["height"] > 1.8 * size  # the large one of the font
    assert box(page, " mtable")["height"] > 2.5 * size
    assert box(page, " mrow:has(> mtable) > mo")["height"] > 0.9 * box(page, " mtable")["height"]
    assert page.locator(".tl-last math .box").evaluate("box => getComputedStyle(box).borderTopStyle") == "solid"

    wide = page.evaluate("""[...document.querySelectorAll('.tl-last .math.block, .tl-last .tl-block, .tl-last .tl-table, .tl-last pre')]
        .filter((element) => element.scrollWidth > element.clientWidth + 1)
        .map((element) => [element.className || element.localName, getComputedStyle(element).overflowX])""")
    assert [overflow for _, overflow in wide] == ["auto"] * len(wide)
    assert {name for name, _ in wide} == {"math block", "tl-block", "tl-table", "pre"}
    assert page.evaluate("document.querySelector('.tl-scroll').scrollWidth <= document.querySelector('.tl-scroll').clientWidth")
