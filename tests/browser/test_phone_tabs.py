"""The other tabs on a phone, in Chinese: every button of them is tapped at least once, and does its work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import expect

from modules.services.preferences import Preferences
from tests.browser.conftest import Site, until
from tests.browser.phone import Phone, zh
from tests.browser.test_writing import Paper

pytestmark = pytest.mark.browser


def test_every_tab_is_reached_by_thumb_and_fits(site: Site):
    phone = Phone(site)
    for name in ("default", "notebook", "parameters", "models", "training", "session", "chat"):
        phone.tab(name)


# --- Default and Notebook


@pytest.mark.parametrize("name", ["default", "notebook"])
def test_a_page_of_text_is_written_counted_and_taken_back(site: Site, name: str):
    site.model.reply = lambda request: "，还有"
    phone = Phone(site, permissions=["clipboard-read", "clipboard-write"])
    phone.tab(name)
    paper = Paper(phone.page, name, open_it=False)
    before = "" if name == "default" else "从前"
    paper.start.fill("从前")
    for key, text in (("writing.generate", "，还有"), ("continue", "，还有，还有")):
        phone.tap(key, paper.at)
        expect(paper.text).to_have_value(before + text)
        paper.state("whole")
    site.model.reply = lambda request: "有座山"
    phone.tap("regenerate", paper.at)
    expect(paper.text).to_have_value(before + "有座山")
    paper.state("whole")
    phone.tap("writing.count", paper.at)
    counted = zh("writing.counted.two", prompt=2, reply=3, context="4,096")
    expect(paper.at.locator(".tl-writing-status")).to_have_text(
        counted if name == "default" else zh("writing.counted", n=5, context="4,096")
    )
    phone.tap("copy", paper.at)
    assert phone.clipboard() == before + "有座山"
    phone.tap("undo", paper.at)
    phone.told("writing.undone")
    expect(paper.text).to_have_value(before)
    phone.tap("writing.redo")
    expect(paper.text).to_have_value(before + "有座山")
    site.model.reply, site.model.pace = lambda request: "没完没了" * 400, 0.02
    phone.tap("writing.generate", paper.at)
    paper.state("streaming")
    phone.tap("stop", paper.at)
    paper.state("cut")
    assert site.model.streams[-1].closed
    phone.fits()


def test_the_output_is_looked_at_in_every_form(site: Site):
    text = "# 山\n\n<strong>高</strong>"
    site.model.reply = lambda request: text
    phone = Phone(site)
    phone.tab("default")
    paper = Paper(phone.page, "default", open_it=False)
    shown = paper.at.locator(".tl-shown")
    paper.start.fill("有座")
    phone.tap("writing.generate", paper.at)
    expect(paper.text).to_have_value(text)
    paper.state("whole")

    def view(name: str) -> None:
        paper.at.get_by_role("tab", name=zh(f"writing.view.{name}"), exact=True).tap()
        phone.fits()

    view("markdown")
    expect(shown.locator("h1")).to_have_text("山")
    expect(shown).to_contain_text("<strong>高</strong>")
    view("html")
    expect(shown.locator("strong")).to_have_text("高")
    expect(shown).to_contain_text("# 山")
    view("tokens")
    expect(shown.locator("li").first).to_contain_text(str(ord("#")))
    view("next")
    expect(shown.locator(".tl-distribution li").first).to_be_visible()
    view("raw")
    expect(paper.text).to_be_visible()
    expect(paper.text).to_have_value(text)


@pytest.mark.parametrize("name", ["default", "notebook"])
def test_prompts_are_taken_saved_and_deleted(site: Site, name: str):
    phone = Phone(site)
    phone.tab(name)
    paper = Paper(phone.page, name, open_it=False)
    prompts = paper.at.get_by_label(zh("writing.prompts"))
    prompts.select_option("QA")
    expect(paper.start).to_have_value(site.app.prompts.read("QA"))
    expect(phone.button("writing.generate", paper.at)).to_be_enabled()
    paper.start.fill("我的开头")
    phone.tap("writing.prompt.save", paper.at)
    phone.fits()
    phone.dialog.locator("input").fill("我自己的")
    phone.tap("save", phone.dialog)
    phone.told("writing.prompt.saved", name="我自己的")
    expect(prompts).to_have_value("我自己的")
    assert site.app.prompts.read("我自己的") == "我的开头"
    phone.tap("writing.prompt.delete", paper.at)
    phone.told("writing.prompt.deleted", name="我自己的")
    expect(prompts).to_have_value("")
    assert "我自己的" not in site.app.prompts.names()


# --- Parameters


def test_presets_are_chosen_saved_deleted_and_made_neutral(site: Site):
    phone = Phone(site)
    phone.tab("parameters")
    at, summary = phone.page.locator("#tab-parameters"), phone.page.locator(".tl-summary table")
    expect(summary).to_be_attached()
    expect(at.locator(".tl-live-plot li").first).to_be_visible()
    preset = phone.field("preset", at).first
    preset.fill("Yara")
    phone.page.get_by_role("option", name="Yara").tap()
    expect(summary).to_contain_text("top_p1.00.21")
    preset.fill("我的预设")
    preset.blur()
    phone.tap("save", at)
    until(phone.page, lambda: "我的预设" in site.app.presets.names())
    expect(preset).to_have_value("我的预设")
    phone.tap("delete", at)
    until(phone.page, lambda: "我的预设" not in site.app.presets.names())
    phone.tap("parameters.neutral", at)
    expect(summary.locator("tr")).to_have_count(0)
    phone.fits()


def test_what_is_set_is_kept_and_made_the_default_for_all(site: Site):
    phone = Phone(site)
    phone.tab("parameters")
    at = phone.page.locator("#tab-parameters")
    expect(at.locator(".tl-summary table")).to_be_attached()
    temperature = at.get_by_label(zh("slider.number", name=zh("setting.temperature")))
    temperature.fill("0.31")
    temperature.blur()
    grammar = phone.field("setting.grammar", at)
    grammar.fill('root ::= "是" | "否"')
    grammar.blur()
    until(phone.page, lambda: Preferences(site.app, "local").sampling[0].grammar == 'root ::= "是" | "否"')
    assert Preferences(site.app, "local").sampling[0].temperature == 0.31
    phone.tap("parameters.default", at)
    path = site.app.root / "settings.yaml"
    until(phone.page, path.exists)
    saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert saved["temperature"] == 0.31 and "是" in saved["grammar"]
    path.unlink()
    site.app.page, site.app.sampling = type(site.app.page)(), type(site.app.sampling)()


# --- Session


def test_everything_goes_into_a_file_and_comes_back_and_the_server_is_copied(site: Site, tmp_path: Path):
    phone = Phone(site, permissions=["clipboard-read", "clipboard-write"])
    phone.say("留下")
    phone.tab("session")
    at = phone.page.locator("#tab-session")
    expect(at.get_by_role("definition").get_by_text(zh("key.enter.does"), exact=True)).to_be_visible()
    with phone.page.expect_download() as download:
        at.get_by_role("link", name=zh("session.export")).tap()
    download.value.save_as(tmp_path / "all.zip")
    before = len(site.app.store.for_owner("local").chats.page())
    phone.give("session.import", [tmp_path / "all.zip"], at)
    expect(phone.toast).to_contain_text(re.compile(f"^聊天：{before}；"))
    assert len(site.app.store.for_owner("local").chats.page()) == 2 * before
    phone.tap("server.copy", at)
    assert "gradio" in phone.clipboard()


def test_the_first_tab_the_theme_and_the_language_are_chosen(site: Site):
    phone = Phone(site)
    phone.tab("session")
    phone.field("page.first_tab").select_option("notebook")
    phone.told("session.kept")
    assert Preferences(site.app, "local").page.first_tab == "notebook"
    phone.tap("parameters.default", phone.page.locator("#tab-session"))
    phone.told("session.defaults.saved", file="settings.yaml")
    path = site.app.root / "settings.yaml"
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["first_tab"] == "notebook"
    path.unlink()
    site.app.page = type(site.app.page)()
    phone.field("page.theme").select_option("dark")
    phone.page.wait_for_function("document.querySelector('.dark') && !document.hidden")
    phone.page.locator("#tab-session").get_by_label(zh("page.language")).select_option("en")
    expect(phone.page.get_by_role("tab", name="Session", exact=True)).to_be_visible()
    expect(phone.page.locator("html")).to_have_attribute("lang", "en")
