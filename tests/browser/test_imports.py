"""Files of chats on the page: how many came in, and what did not and why, in a list that stays to be read, in both languages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from modules.chats.remarks import WORDS as WHY
from modules.i18n.catalogs import tables
from modules.i18n.sentences import in_language
from tests.browser.conftest import Site
from tests.field.test_chat_files import INPUTS, row

WORDS = tables()


def choose(page: Page, words: dict[str, str], files: list[Path]) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=words["import"]).click()
    chooser.value.set_files(files)


@pytest.mark.parametrize(("locale", "language"), [("en-US", "en"), ("zh-CN", "zh")])
def test_an_odd_one_among_49_is_named_in_a_list_that_stays(site: Site, tmp_path: Path, locale: str, language: str):
    words = WORDS[language]
    rows = [json.dumps(row(n)) for n in range(49)]
    rows.insert(20, '{"title": "Odd <b>one</b>", "messages": [{"role": "king", "content": "x"}]}')
    (tmp_path / "fifty.json").write_text("[" + ",".join(rows) + "]")
    page = site.open(locale=locale)
    choose(page, words, [tmp_path / "fifty.json"])
    toast = page.locator(".tl-toast")
    said = words["imported.partly"].format(n=49, left=1)
    expect(toast).to_contain_text(said)
    expect(page.locator(".tl-row")).to_have_count(49)
    expect(page.locator(".tl-message")).to_have_count(2)
    toast.get_by_role("button", name=words["import.list"]).click()
    sheet = page.get_by_role("dialog", name=words["import.report"])
    entry = sheet.get_by_role("listitem")
    expect(entry).to_have_count(1)
    expect(entry).to_contain_text(words["import.number"].format(n=21))
    expect(entry).to_contain_text("Odd <b>one</b>")
    expect(entry).to_contain_text(in_language("Nobody knows who speaks as “king”.", language))
    sheet.get_by_role("button", name=words["close"]).click()
    expect(toast).to_contain_text(said)  # to be opened again
    toast.get_by_role("button", name=words["close"]).click()
    expect(toast).to_have_count(0)


def test_exports_of_other_programs_come_in_with_what_is_missing_named(site: Site, tmp_path: Path):
    words = WORDS["en"]
    (tmp_path / "bad.json").write_text("{}")
    page = site.open()
    choose(
        page,
        words,
        [*(INPUTS / name for name in ("chatgpt.json", "sillytavern.jsonl", "lmstudio.json")), tmp_path / "bad.json"],
    )
    page.locator(".tl-toast").get_by_role("button", name=words["import.list"]).click()
    sheet = page.get_by_role("dialog", name=words["import.report"])
    expect(sheet.get_by_role("listitem").filter(has_text="bad.json")).to_contain_text("The file is in no form that is known")
    expect(sheet.get_by_role("listitem").filter(has_text="New chat")).to_contain_text("There is no message in it.")
    sheet.get_by_role("listitem").filter(has_text="service hides").get_by_role("button", name="Tools and pictures").click()
    expect(sheet).to_have_count(0)
    expect(page.locator(".tl-current .tl-row-title")).to_have_text("Tools and pictures")
    expect(page.locator(".tl-message")).to_have_count(5)
    expect(page.locator(".tl-message").nth(1)).to_contain_text("print(8 * 6)")
    page.get_by_role("link", name="灯塔 and tides").click()
    expect(page.locator(".tl-message").nth(1)).to_contain_text("The moon.")
    expect(page.locator(".tl-message").nth(1).locator(".tl-versions")).to_contain_text("2/2")


@pytest.mark.parametrize(("locale", "language"), [("en-US", "en"), ("zh-CN", "zh")])
def test_a_file_of_nothing_is_one_sentence(site: Site, tmp_path: Path, locale: str, language: str):
    words = WORDS[language]
    (tmp_path / "new.json").write_text('{"textloom": 9, "threads": []}')
    page = site.open(locale=locale)
    choose(page, words, [tmp_path / "new.json"])
    said = words["import.refused"].format(file="new.json", why=in_language(WHY["newer"], language))
    expect(page.locator(".tl-toast.tl-wrong")).to_contain_text(said)
    assert site.app.store.for_owner("local").chats.page() == []
