"""A phone in a visitor's hand: 390 pixels wide, in Chinese, driven by taps on what the page's own table of words names."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Locator, expect

from modules.i18n.catalogs import tables
from tests.browser.conftest import Site, copied, reply

WIDTH = 390


def zh(key: str, **values: object) -> str:
    """What the page says in Chinese for `key`, with `values` in their places."""
    words = tables()["zh"][key]
    for name, value in values.items():
        words = words.replace("{" + name + "}", str(value))
    return words


class Phone:
    """One visitor's page. Every `key` is one of modules/i18n/locales/zh.json; `within` narrows where it is looked for."""

    def __init__(self, site: Site, path: str = "", **context: object) -> None:
        self.page = site.open(path, width=WIDTH, height=844, locale="zh-CN", has_touch=True, is_mobile=True, **context)
        self.box = self.page.locator(".tl-composer textarea")
        self.last = self.page.locator(".tl-message.tl-last")
        self.body = self.last.locator(".tl-body")
        self.messages = self.page.locator(".tl-message")
        self.dialog = self.page.locator("dialog[open]").last
        self.toast = self.page.locator(".tl-toast").last

    # --- what is on the page

    def button(self, key: str, within: Locator | None = None, **values: object) -> Locator:
        return (within or self.page).get_by_role("button", name=zh(key, **values), exact=True)

    def field(self, key: str, within: Locator | None = None) -> Locator:
        return (within or self.page).get_by_label(zh(key), exact=False)

    def fits(self) -> None:
        """Nothing makes the page wider than the phone."""
        assert self.page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [WIDTH, WIDTH]

    # --- what the thumb does

    def tap(self, key: str, within: Locator | None = None, **values: object) -> None:
        self.button(key, within, **values).tap()

    def choose(self, key: str, **values: object) -> None:
        """An entry of the menu that is open."""
        label = self.page.locator(".tl-menu .tl-menu-label").get_by_text(zh(key, **values), exact=True)
        self.fits()
        label.tap()

    def of_message(self, key: str, message: Locator | None = None) -> None:
        """From the menu of the last (or another) message."""
        self.tap("message.more", message or self.last)
        self.choose(key)

    def of_view(self, key: str) -> None:
        self.tap("chat.view")
        self.choose(key)

    def of_box(self, key: str) -> None:
        self.tap("composer.more")
        self.choose(key)

    def of_chat(self, title: str, key: str) -> None:
        """From the menu of a chat in the list, which is open."""
        self.tap("chat.more", title=title)
        self.choose(key)

    def say(self, text: str) -> str:
        """Send a message; the reply to it, when it is finished."""
        before = self.messages.count()
        self.box.fill(text)
        self.tap("send")
        expect(self.messages).to_have_count(before + 2)
        return reply(self.page)

    def undo(self) -> None:
        self.tap("undo", self.toast)

    def told(self, key: str, **values: object) -> None:
        """The page says so in passing."""
        expect(self.page.locator(".tl-toast", has_text=zh(key, **values)).last).to_be_visible()

    def save(self, **fields: str) -> None:
        """Fill fields of the form in front, by the keys of their labels with _ for dots, and save it."""
        for key, text in fields.items():
            self.field(key.replace("_", "."), self.dialog).fill(text)
        self.tap("save", self.dialog)
        expect(self.page.locator("dialog[open]")).to_have_count(0)

    def close(self) -> None:
        """The sheet in front."""
        self.fits()
        self.tap("close", self.dialog.locator(".tl-sheet-head"))
        expect(self.page.locator("dialog[open]")).to_have_count(0)

    def tab(self, name: str) -> None:
        """A tab of the page, which may be in the menu of tabs."""
        here, label = self.page.locator(f"#tab-{name}"), zh(f"tab.{name}")
        shown = self.page.get_by_role("tab", name=label, exact=True)
        expect(self.button("tabs.more")).to_be_visible()
        if shown.count():
            shown.tap()
        else:
            self.tap("tabs.more")
            self.page.locator("#tl-tabs .overflow-dropdown").get_by_role("button", name=label, exact=True).tap()
        expect(here).to_be_visible()
        self.fits()

    # --- files and the clipboard

    def clipboard(self) -> str:
        return copied(self.page, zh("copied"))

    def give(self, key: str, files: list[Path], within: Locator | None = None) -> None:
        """Tap what asks for files, and choose these."""
        with self.page.expect_file_chooser() as chooser:
            self.tap(key, within)
        chooser.value.set_files(files)
