"""Every card of every tab at both widths: nothing is cut off, lies over something else, or shows through."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from modules.library.remote_address import RemoteAddress, write_address
from modules.services.preferences import Preferences
from tests.browser.conftest import Site, reply, say
from tests.browser.test_every_tab import TABS, open_tab
from tests.field.test_undo import a_run

pytestmark = pytest.mark.browser
SIZES = pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["wide", "phone"])
FLAWS = """(tab) => {
  const root = document.getElementById(`tab-${tab}`);
  const seen = (element) => element.checkVisibility({visibilityProperty: true, opacityProperty: true}) && !element.closest("[inert]");
  const name = (element) => `${element.tagName.toLowerCase()}${element.id ? `#${element.id}` : ""}.${[...element.classList].filter((one) => !one.startsWith("svelte")).join(".")} “${(element.innerText ?? "").trim().slice(0, 40)}”`;
  const scrolls = (element) => /auto|scroll/.test(getComputedStyle(element).overflow);
  const scroller = (element) => { for (let at = element; at && at !== root.parentElement; at = at.parentElement) if (scrolls(at)) return at; return null; };
  const flaws = [];
  const all = [...root.querySelectorAll("*")].filter((element) => seen(element) && !element.closest("svg, canvas, .tl-hidden, .visually-hidden, .sr-only"));
  const page = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > page) flaws.push(`the page is ${document.documentElement.scrollWidth} wide`);

  // Cut: what is in a box is larger than the box, and the box neither scrolls nor says that it goes on (an ellipsis).
  for (const element of all) {
    const style = getComputedStyle(element);
    if (!element.clientWidth || style.display === "inline" || scrolls(element)) continue;
    if (element.matches("input, select, textarea, progress") || element.querySelector(":scope .tl-hidden, :scope input[type=file]")) continue;
    const ellipsis = style.textOverflow === "ellipsis" || style.webkitLineClamp !== "none";
    const hides = style.overflowX !== "visible" || style.overflowY !== "visible";
    if (!ellipsis && hides && (element.scrollWidth > element.clientWidth + 2 || element.scrollHeight > element.clientHeight + 2)) {
      flaws.push(`cut: ${name(element)} holds ${element.scrollWidth}×${element.scrollHeight} in ${element.clientWidth}×${element.clientHeight}`);
    }
  }

  // Out of its card: a text that leaves the block that is drawn around it.
  const cards = all.filter((element) => {
    const style = getComputedStyle(element);
    return parseFloat(style.borderTopWidth) > 0 && parseFloat(style.borderBottomWidth) > 0 && style.borderTopStyle !== "none" && element.clientHeight > 0
      && element.tagName !== "INPUT" && style.borderTopColor !== "rgba(0, 0, 0, 0)";
  });
  const texts = all.filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.nodeValue.trim()));
  const boxes = (element) => {
    const range = document.createRange();
    const found = [];
    for (const node of element.childNodes) {
      if (node.nodeType !== 3 || !node.nodeValue.trim()) continue;
      range.selectNodeContents(node);
      found.push(...range.getClientRects());
    }
    return found;
  };
  const clipped = (element, box) => { // what of it is to be seen in the boxes that scroll around it
    let {left, right, top, bottom} = box;
    for (let at = element; at && at !== root; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.overflowX === "visible" && style.overflowY === "visible") continue;
      const frame = at.getBoundingClientRect();
      left = Math.max(left, frame.left); right = Math.min(right, frame.right); top = Math.max(top, frame.top); bottom = Math.min(bottom, frame.bottom);
    }
    return right - left > 1 && bottom - top > 1 ? {left, right, top, bottom} : null;
  };
  const placed = texts.flatMap((element) => boxes(element).map((box) => [element, clipped(element, box)]).filter(([, box]) => box));
  for (const [element, box] of placed) {
    const card = cards.findLast((one) => one.contains(element));
    if (!card) continue;
    const around = card.getBoundingClientRect();
    if (box.left < around.left - 1 || box.right > around.right + 1 || box.top < around.top - 2 || box.bottom > around.bottom + 2) {
      flaws.push(`out of its card: ${name(element)} of ${name(card)}`);
    }
  }

  // Broken: a short word in two lines, where its column is too narrow for it.
  for (const element of texts) {
    const text = element.textContent.trim();
    if (element.children.length || !/^[!-~]{2,14}$/.test(text) || element.closest("pre, .tl-message")) continue;
    if (new Set(boxes(element).map((box) => Math.round(box.top))).size > 1) flaws.push(`broken: ${name(element)}`);
  }

  // Over one another: two texts in one place.
  placed.sort(([, one], [, other]) => one.top - other.top);
  for (let at = 0; at < placed.length; at += 1) {
    const [one, first] = placed[at];
    for (let next = at + 1; next < placed.length && placed[next][1].top < first.bottom - 3; next += 1) {
      const [other, second] = placed[next];
      const wide = Math.min(first.right, second.right) - Math.max(first.left, second.left);
      const high = Math.min(first.bottom, second.bottom) - Math.max(first.top, second.top);
      if (wide > 2 && high > 4 && one !== other) flaws.push(`over one another: ${name(one)} and ${name(other)}`);
    }
  }
  return [...new Set(flaws)];
}"""
"""What is wrong with the tab in front, as sentences."""


def unfold(page: Page, tab: str) -> None:
    """Open all that is folded."""
    page.evaluate(
        """tab => document.querySelectorAll(`#tab-${tab} details:not([open]) > summary, #tab-${tab} button.label-wrap:not(.open)`)
          .forEach((one) => one.checkVisibility() && one.click())""",
        tab,
    )


LONG = "a-name-without-a-space-at-which-it-could-be-broken_" * 3


def with_long_names(site: Site) -> None:
    """What people and hubs name things, and why some cannot be used."""
    app = site.app
    write_address(app.models.folder, LONG, RemoteAddress(f"http://127.0.0.1:9/{LONG}/v1"))
    (app.models.folder / f"{LONG}.gguf").write_bytes(b"no model")
    (app.loras.folder / LONG).mkdir(parents=True, exist_ok=True)
    (app.loras.folder / LONG / "adapter_model.safetensors").write_bytes(b"")
    a_run(app, LONG, model=LONG, dataset=f"{LONG}.json")
    app.prompts.save(LONG, LONG)
    app.presets.save(LONG, app.sampling.changed({"stop": [LONG, LONG]}))
    Preferences(app, "local").choose_preset(LONG)
    with app.trash.undoable("local", "prompt", LONG, [app.prompts.file(LONG)]):
        app.prompts.save(LONG, "another")


@pytest.fixture(autouse=True)
def without_long_names(filled: Site) -> Iterator[None]:
    yield
    app = filled.app
    for path in (
        app.models.folder / f"{LONG}.yaml",
        app.models.folder / f"{LONG}.gguf",
        app.prompts.file(LONG),
        app.presets.file(LONG),
    ):
        path.unlink(missing_ok=True)
    shutil.rmtree(app.loras.folder / LONG, ignore_errors=True)


@SIZES
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_no_card_is_cut_or_lies_over_another(filled: Site, size: tuple[int, int], locale: str):
    filled.model.reply = lambda request: "# A title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\nand $x^2$"
    filled.app.store.for_owner("local").preferences.set("sheet.default", {"prompt": "Once", "text": " upon a time"})
    with_long_names(filled)
    page = filled.open(width=size[0], height=size[1], locale=locale)
    say(page, f"{LONG} {LONG} " + "hello " * 40)
    reply(page)
    found = {}
    for tab in TABS:
        open_tab(page, tab)
        if tab == "models":
            page.locator(f".tl-card[data-name='{LONG}']").first.click()
            expect(page.locator(".tl-chosen h2").first).to_have_text(LONG)
        if tab == "training":
            page.locator(f".tl-card[data-id*='{LONG}']").click()
            expect(page.locator(".tl-run h2")).to_contain_text(LONG)
        unfold(page, tab)
        page.wait_for_timeout(300)
        if flaws := page.evaluate(FLAWS, tab):
            found[tab] = flaws
    assert found == {}


def test_the_walk_finds_what_is_cut_out_of_its_card_and_over_another(site: Site):
    page = site.open()
    open_tab(page, "session")
    assert page.evaluate(FLAWS, "session") == []
    page.evaluate(
        """() => {
          const host = document.querySelector(".tl-session");
          const add = (html) => host.insertAdjacentHTML("afterbegin", html);
          add('<div style="width:60px;height:20px;overflow:hidden"><div style="width:200px">much more than is to be seen</div></div>');
          add('<div style="border:1px solid red;height:20px"><p style="height:90px">one<br>two<br>three</p></div>');
          add('<div style="width:20px;overflow-wrap:anywhere">narrow</div>');
          add('<div style="height:20px">here</div><div style="height:20px;margin-top:-50px">and here</div>');
        }"""
    )
    kinds = {flaw.split(":")[0] for flaw in page.evaluate(FLAWS, "session")}
    assert kinds == {"cut", "out of its card", "broken", "over one another"}
