"""The chat on a phone, in Chinese: every button of it is tapped at least once, and does its work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from modules.library.character import Character
from tests.browser.conftest import Site, reply, until
from tests.browser.phone import Phone, zh
from tests.library.test_characters import picture

pytestmark = pytest.mark.browser
CLIPBOARD = ["clipboard-read", "clipboard-write"]


def in_turn(site: Site, *texts: str) -> None:
    """The model says these, one after the other."""
    answers = iter(texts)
    site.model.reply = lambda request: next(answers)


# --- the list of conversations


def test_the_list_is_opened_searched_and_its_chats_renamed_pinned_and_deleted(site: Site):
    phone = Phone(site)
    titles = phone.page.locator(".tl-row-title")
    phone.say("一个关于图书馆的问题")
    phone.tap("chat.new")
    expect(phone.messages).to_have_count(0)
    phone.say("茶叶怎么保存？")
    phone.tap("sidebar.show")
    expect(titles).to_have_text(["茶叶怎么保存？", "一个关于图书馆的问题"])
    expect(phone.page.locator(".tl-list h2")).to_have_text([zh("group.today")])
    phone.fits()
    search = phone.page.get_by_role("searchbox", name=zh("search.long"))
    search.fill("图书")
    expect(titles).to_have_text(["一个关于图书馆的问题"])
    search.fill("没有这样的话")
    expect(phone.page.locator(".tl-nothing")).to_have_text(zh("search.nothing"))
    search.fill("")
    phone.of_chat("一个关于图书馆的问题", "rename")
    phone.save(title="图书馆")
    expect(titles).to_have_text(["茶叶怎么保存？", "图书馆"])
    phone.of_chat("茶叶怎么保存？", "pin")
    expect(phone.page.locator(".tl-list h2")).to_have_text([zh("group.pinned"), zh("group.today")])
    phone.of_chat("茶叶怎么保存？", "unpin")
    expect(phone.page.locator(".tl-list h2")).to_have_text([zh("group.today")])
    phone.of_chat("图书馆", "delete")
    phone.told("chat.deleted", title="图书馆")
    expect(titles).to_have_text(["茶叶怎么保存？"])
    phone.undo()
    expect(titles).to_have_count(2)
    phone.page.get_by_role("link", name="图书馆").tap()
    expect(phone.page.locator(".tl-side")).to_have_attribute("data-open", "false")
    expect(phone.messages.first).to_contain_text("一个关于图书馆的问题")
    phone.tap("sidebar.show")
    phone.tap("sidebar.hide")
    expect(phone.page.locator(".tl-side")).to_have_attribute("data-open", "false")
    phone.tap("sidebar.show")
    phone.tap("chat.new", phone.page.locator(".tl-side"))
    expect(phone.page.locator(".tl-welcome h1")).to_have_text(zh("welcome"))


def test_a_chat_goes_out_in_every_form_and_comes_back(site: Site, tmp_path: Path):
    phone = Phone(site)
    phone.say("灯塔有多高？")
    phone.tap("sidebar.show")
    files = []
    for form in ("textloom", "markdown", "openai", "sharegpt", "pairs"):
        phone.of_chat("灯塔有多高？", "export")
        with phone.page.expect_download() as download:
            phone.choose(f"export.{form}")
        files.append(tmp_path / f"{form}-{download.value.suggested_filename}")
        download.value.save_as(files[-1])
        assert "灯塔有多高？" in files[-1].read_text(encoding="utf-8")
    phone.give("import", files)
    phone.told("imported.many", n=5)
    expect(phone.page.locator(".tl-row-title")).to_have_count(6)
    assert len(site.app.store.for_owner("local").chats.page()) == 6
    expect(phone.messages).to_have_count(2)


# --- messages and their versions


def test_messages_are_edited_answered_again_stepped_through_and_deleted(site: Site):
    phone = Phone(site, permissions=CLIPBOARD)
    in_turn(site, "第一个回答", "第二个回答", "第三个回答", "，继续写")
    assert phone.say("问提") == "第一个回答"
    mine, versions = phone.messages.first, phone.last.locator(".tl-versions")
    phone.of_message("edit", mine)
    mine.locator(".tl-edit").fill("问题")
    phone.tap("save.send", mine)
    expect(phone.body).to_have_text("第二个回答")
    expect(phone.messages.first.locator(".tl-versions")).to_contain_text("2/2")
    phone.tap("regenerate", phone.last)
    expect(versions).to_contain_text("2/2")
    expect(phone.body).to_have_text("第三个回答")
    phone.tap("version.previous", phone.last)
    expect(phone.body).to_have_text("第二个回答")
    phone.tap("version.next", phone.last)
    expect(phone.body).to_have_text("第三个回答")
    phone.of_message("continue")
    expect(phone.body).to_have_text("第三个回答，继续写")
    phone.tap("copy", phone.last)
    assert phone.clipboard() == "第三个回答，继续写"
    phone.of_message("edit")
    phone.last.locator(".tl-edit").fill("我的话")
    phone.tap("cancel", phone.last)
    expect(phone.body).to_have_text("第三个回答，继续写")
    phone.of_message("edit")
    phone.last.locator(".tl-edit").fill("我的话")
    phone.fits()
    phone.tap("save", phone.last)
    expect(phone.body).to_have_text("我的话")
    phone.of_message("delete")
    phone.told("message.deleted")
    expect(phone.body).to_have_text("第三个回答，继续写")
    phone.undo()
    expect(phone.body).to_have_text("我的话")


def test_a_reply_that_was_stopped_says_so_and_goes_on(site: Site):
    phone = Phone(site)
    site.model.reply, site.model.pace = lambda request: "说个不停。" * 200, 0.02
    phone.box.fill("说吧")
    phone.tap("send")
    expect(phone.body).to_contain_text("说个不停。")
    phone.tap("stop")
    expect(phone.last).to_have_attribute("data-state", "cut")
    note = phone.last.locator(".tl-note")
    expect(note).to_contain_text(zh("note.stopped"))
    assert site.model.streams[-1].closed
    stopped = reply(phone.page)
    site.model.reply, site.model.pace = lambda request: "说完了。", 0.0
    phone.tap("continue", note)
    expect(phone.body).to_have_text(stopped + "说完了。")
    expect(phone.last).to_have_attribute("data-state", "whole")


def test_who_waits_in_line_sees_the_place_and_can_leave(site: Site):
    phone = Phone(site)
    with site.all_wait(3) as waiting:
        phone.box.fill("轮到我了吗？")
        phone.tap("send")
        expect(phone.last.locator(".tl-status")).to_contain_text(zh("status.place", n=3))
        phone.tap("stop")
        expect(phone.last).to_have_attribute("data-state", "cut")
        assert waiting[0].closed


def test_versions_are_compared_and_the_map_leads_to_each_branch(site: Site):
    phone = Phone(site)
    in_turn(site, "天是蓝的", "天是灰的", "因为下雨")
    phone.say("天是什么颜色？")
    phone.tap("regenerate", phone.last)
    expect(phone.body).to_have_text("天是灰的")
    phone.of_message("diff")
    expect(phone.dialog).to_have_attribute("aria-label", zh("diff"))
    expect(phone.dialog.locator("del")).to_have_text("蓝")
    expect(phone.dialog.locator("ins")).to_have_text("灰")
    phone.field("diff.old", phone.dialog).select_option(label=zh("version.number", n=2))
    expect(phone.dialog.locator(".tl-diff-same")).to_have_text(zh("diff.same"))
    phone.close()
    phone.say("为什么？")
    phone.of_view("map")
    tree = phone.page.get_by_role("tree", name=zh("map"))
    expect(tree.get_by_role("treeitem")).to_have_count(5)
    expect(tree.locator("[aria-current]")).to_contain_text("因为下雨")
    phone.fits()
    tree.get_by_role("button", name="天是蓝的").tap()
    expect(phone.page.locator("dialog[open]")).to_have_count(0)
    expect(phone.body).to_have_text("天是蓝的")
    before = phone.page.url
    phone.of_message("branch")
    phone.told("branched")
    expect(phone.messages).to_have_count(2)
    assert phone.page.url != before
    assert len(site.app.store.for_owner("local").chats.page()) == 2


# --- what a reply is made of


def test_what_the_model_sees_is_shown_before_and_after(site: Site):
    phone = Phone(site)
    phone.say("第一个问题")
    phone.box.fill("第二个问题")
    expect(phone.page.locator(".tl-context-words")).to_have_text(re.compile(r"^\d+ / 4,096 " + zh("context.words").split()[-1]))
    prompt = phone.page.locator(".tl-prompt")
    phone.page.locator(".tl-context").tap()
    expect(phone.dialog).to_have_attribute("aria-label", zh("prompt"))
    expect(prompt).to_contain_text("<|im_start|>user\n第二个问题<|im_end|>\n<|im_start|>assistant")
    phone.close()
    phone.of_view("prompt")
    expect(prompt).to_contain_text("第二个问题")
    phone.close()
    phone.of_message("prompt.of.reply")
    expect(prompt).to_contain_text("第一个问题")
    expect(prompt).not_to_contain_text("第二个问题")
    phone.close()
    phone.of_message("prompt.of.message", phone.messages.first)
    expect(prompt).to_contain_text("第一个问题")
    phone.close()


def test_tokens_are_coloured_and_another_one_is_chosen(site: Site):
    phone = Phone(site)
    site.model.reply = lambda request: "abc"
    phone.say("拼写")
    tokens = phone.last.locator(".tl-token")
    phone.of_view("tokens")
    expect(phone.last.locator(".tl-note")).to_contain_text(zh("tokens.none"))
    phone.tap("tokens.compute", phone.last)
    expect(tokens).to_have_text(["a", "b", "c"])
    expect(phone.last.locator(".tl-legend")).to_contain_text(zh("tokens.likely"))
    tokens.nth(1).tap()
    menu = phone.page.get_by_role("menu", name=zh("tokens.choose"))
    phone.fits()
    site.model.reply = lambda request: "YZ"
    menu.get_by_role("menuitemradio", name="d").tap()
    expect(phone.last.locator(".tl-tokens")).to_have_text("adYZ")
    expect(phone.last.locator(".tl-versions")).to_contain_text("2/2")
    phone.of_view("tokens")
    expect(tokens).to_have_count(0)
    expect(phone.body).to_have_text("adYZ")
    phone.of_message("tokens")
    expect(tokens).to_have_text(["a", "d", "Y", "Z"])
    phone.of_message("tokens.hide")
    expect(tokens).to_have_count(0)


def test_a_reply_is_run_again_and_copied_as_programs(site: Site):
    phone = Phone(site, permissions=CLIPBOARD)
    in_turn(site, "一样", "一样", "不一样")
    phone.say("再来一次")
    note = phone.last.locator(".tl-note")
    phone.of_message("again.exactly")
    expect(note).to_contain_text(zh("again.same"))
    phone.of_message("again.exactly")
    expect(note).to_contain_text(zh("again.different"))
    first, second, third = site.model.requests[-3:]
    assert first == second == third
    phone.tap("diff", note)
    expect(phone.dialog.locator("ins")).to_have_text("不")
    phone.close()
    phone.of_message("copy.curl")
    assert re.match(r"curl .*/v1/chat/completions", phone.clipboard())
    phone.of_message("copy.python")
    program = phone.clipboard()
    assert "import" in program and "再来一次" in program


def test_answers_are_compared_and_one_is_kept(site: Site):
    site.model.load_adapter("tuned", "")
    site.model.reply = lambda request: f"{request.adapter or '基础'}的回答"
    phone = Phone(site)
    phone.box.fill("你是谁？")
    phone.of_box("compare.answers")
    expect(phone.dialog).to_have_attribute("aria-label", zh("compare"))
    expect(phone.field("adapter", phone.dialog).nth(1)).to_have_value("tuned")
    phone.field("compare.third", phone.dialog).check()
    phone.field("preset", phone.dialog).nth(2).select_option("Deterministic")
    phone.fits()
    phone.tap("compare.start", phone.dialog)
    columns = phone.page.locator(".tl-compared")
    expect(columns.locator("h3")).to_have_text([zh("compare.base"), "+ tuned", "+ tuned · Deterministic"])
    phone.told("compare.swipe")
    expect(columns.locator(".tl-body")).to_have_text(["基础的回答", "tuned的回答", "tuned的回答"])
    phone.fits()
    phone.tap("compare.keep", columns.nth(1))
    expect(columns).to_have_count(0)
    expect(phone.body).to_have_text("tuned的回答")
    expect(phone.last.locator(".tl-versions")).to_contain_text("2/3")
    phone.of_message("compare.answers")
    phone.field("compare.third", phone.dialog).uncheck()
    phone.tap("compare.start", phone.dialog)
    expect(columns).to_have_count(2)
    phone.tap("compare.keep", columns.first)
    expect(phone.body).to_have_text("基础的回答")


def test_replies_are_marked_and_become_data_sets(site: Site):
    phone = Phone(site)
    in_turn(site, "好", "不好")
    phone.say("怎么样？")
    phone.tap("regenerate", phone.last)
    expect(phone.body).to_have_text("不好")
    phone.tap("version.previous", phone.last)
    expect(phone.body).to_have_text("好")
    phone.of_message("mark.good")
    phone.told("marked")
    expect(phone.button("mark.good.off", phone.last)).to_have_attribute("aria-pressed", "true")
    phone.of_message("mark.better")
    expect(phone.last.locator(".tl-note")).to_contain_text(zh("mark.better.than", n=2))
    phone.of_view("marks")
    expect(phone.dialog.get_by_role("heading", name=zh("marks.examples", n=1))).to_be_visible()
    expect(phone.dialog.get_by_role("heading", name=zh("marks.preferences", n=1))).to_be_visible()
    phone.field("marks.name", phone.dialog).nth(1).fill("phone")
    phone.button("marks.save", phone.dialog).nth(1).tap()
    phone.told("marks.saved", name="phone.jsonl", n=1)
    row = json.loads((site.app.training.places.datasets / "phone.jsonl").read_text(encoding="utf-8"))
    assert row["chosen"][0]["content"] == "好" and row["rejected"][0]["content"] == "不好"
    with phone.page.expect_download() as download:
        phone.dialog.get_by_role("link", name=zh("marks.download")).first.tap()
    assert json.loads(download.value.path().read_text(encoding="utf-8"))["messages"][-1]["content"] == "好"
    phone.close()
    phone.tap("mark.good.off", phone.last)
    expect(phone.button("mark.good.off", phone.last)).to_have_count(0)


# --- the box


def test_messages_are_put_in_and_taken_out_and_replies_begin_as_told(site: Site):
    phone = Phone(site)
    site.model.reply = lambda request: "一个回答。"
    phone.box.fill("这是我说的")
    phone.of_box("dummy.message")
    expect(phone.body).to_have_text("这是我说的")
    phone.box.fill("这是它说的")
    phone.of_box("dummy.reply")
    expect(phone.body).to_have_text("这是它说的")
    start = phone.page.locator(".tl-start")
    phone.of_box("start")
    phone.save(reply_start="好的，")
    expect(start).to_contain_text(zh("start.is", text="好的，"))
    assert phone.say("然后呢？") == "好的，一个回答。"
    phone.tap("start.edit")
    phone.save(reply_start="当然，")
    expect(start).to_contain_text(zh("start.is", text="当然，"))
    phone.of_box("last.remove")
    expect(phone.messages).to_have_count(2)
    expect(phone.box).to_have_value("然后呢？")
    phone.undo()
    expect(phone.messages).to_have_count(4)
    expect(phone.box).to_have_value("")
    phone.tap("start.clear")
    expect(start).to_be_hidden()


def test_the_model_writes_for_the_user_and_is_stopped(site: Site):
    phone = Phone(site)
    phone.say("你好")
    site.model.reply = lambda request: "我们做什么？"
    phone.box.fill("那么：")
    phone.of_box("impersonate")
    expect(phone.box).to_have_value("那么：我们做什么？")
    expect(phone.messages).to_have_count(2)
    site.model.reply, site.model.pace = lambda request: "没完没了。" * 100, 0.02
    phone.of_box("impersonate")
    expect(phone.box).to_have_value(re.compile("没完没了。没完"))
    phone.tap("stop")
    expect(phone.box).to_be_editable()
    expect(phone.button("send")).to_be_enabled()
    until(phone.page, lambda: site.model.streams[-1].closed)


# --- what speaks, and how


def test_the_system_prompt_the_mode_the_preset_and_the_model_are_chosen(site: Site):
    phone = Phone(site)
    phone.tap("chat.settings")
    phone.field("template", phone.dialog).scroll_into_view_if_needed()
    phone.fits()
    phone.save(system="像海盗一样回答。")
    phone.tap("preset")
    phone.page.get_by_role("menuitemradio", name="Deterministic", exact=True).tap()
    expect(phone.page.locator(".tl-preset .tl-pick-name")).to_have_text("Deterministic")
    phone.say("你好")
    request = site.model.requests[-1]
    assert request.prompt[0].content == "像海盗一样回答。"  # type: ignore[union-attr]
    assert request.sampling.greedy
    phone.page.locator(".tl-model").tap()
    phone.choose("model.more")
    expect(phone.page.locator("#tab-models")).to_be_visible()
    phone.tab("chat")
    phone.tap("preset")
    phone.choose("preset.more")
    expect(phone.page.locator("#tab-parameters")).to_be_visible()


def test_characters_are_written_spoken_with_and_deleted(site: Site, tmp_path: Path):
    (tmp_path / "face.jpg").write_bytes(picture())
    (tmp_path / "老李.yaml").write_text("name: 老李\ncontext: 渔夫。\n", encoding="utf-8")
    phone = Phone(site)
    who = phone.page.locator(".tl-who")
    phone.tap("characters")
    expect(phone.page.locator(".tl-gallery")).to_contain_text(zh("characters.none"))
    phone.give("character.upload", [tmp_path / "老李.yaml"])
    phone.told("character.added", name="老李")
    phone.tap("character.new")
    editor = phone.page.get_by_role("dialog", name=zh("character.new.long"))
    for key, text in {"name": "老周", "context": "{{char}}开茶馆。", "greeting": "{{user}}，喝茶吗？"}.items():
        editor.locator(f"[name={key}]").fill(text)
    phone.give("character.picture", [tmp_path / "face.jpg"], editor)
    phone.fits()
    phone.tap("save", editor)
    expect(who.filter(has_text="老周").locator("img")).to_be_visible()
    assert site.app.characters.read("local", "老周") == Character("老周", "{{char}}开茶馆。", "{{user}}，喝茶吗？")
    phone.tap("character.edit", name="老李")
    editor = phone.page.get_by_role("dialog", name=zh("character.edit", name="老李"))
    editor.locator("[name=context]").fill("老渔夫。")
    phone.tap("save", editor)
    expect(who.filter(has_text="老渔夫。")).to_be_visible()
    phone.tap("character.save", name="老李")
    with phone.page.expect_download() as download:
        phone.dialog.get_by_role("link", name=zh("character.form.yaml")).tap()
    assert "老渔夫。" in download.value.path().read_text(encoding="utf-8")
    phone.tap("character.delete", name="老李")
    expect(who).to_have_count(1)
    phone.undo()
    expect(who).to_have_count(2)
    phone.field("profile.name").fill("安")
    phone.field("profile.name").press("Tab")
    phone.field("mode", phone.dialog).first.select_option("chat")
    expect(phone.dialog).to_contain_text(zh("mode.chat.help"))
    phone.tap("character.begin", name="老周")
    expect(phone.page.locator("dialog[open]")).to_have_count(0)
    expect(phone.body).to_have_text("安，喝茶吗？")
    site.model.reply = lambda request: " 请坐。"
    assert phone.say("好啊") == "请坐。"
    expect(phone.page.locator(".tl-speaker span:last-child")).to_have_text(["老周", "安", "老周"])
    assert site.model.render(site.model.requests[-1]).text == "老周开茶馆。\n\n老周: 安，喝茶吗？\n安: 好啊\n老周:"
    expect(phone.button("character.now", name="老周")).to_be_visible()
    phone.tap("chat.settings")
    phone.dialog.locator("select[name=mode]").select_option(label=zh("mode.chat-instruct"))
    phone.tap("save", phone.dialog)
    expect(phone.page.locator("dialog[open]")).to_have_count(0)
    phone.say("再来一杯")
    assert site.model.render(site.model.requests[-1]).text.endswith("<|im_start|>assistant\n老周:")


def test_pictures_are_attached_and_looked_at(site: Site, tmp_path: Path):
    (tmp_path / "one.jpg").write_bytes(picture())
    (tmp_path / "two.jpg").write_bytes(picture(size=(300, 200)))
    site.model.chat_template = "{% for m in messages %}{{ m.role }}\n{% endfor %}"
    phone = Phone(site)
    phone.give("attach", [tmp_path / "one.jpg", tmp_path / "two.jpg"])
    expect(phone.page.locator(".tl-attached")).to_have_count(2)
    phone.tap("pictures.remove", n=2)
    expect(phone.page.locator(".tl-attached")).to_have_count(1)
    phone.say("这是什么？")
    assert len(site.model.requests[-1].prompt[-1].images) == 1  # type: ignore[union-attr]
    phone.tap("pictures.one", n=1)
    expect(phone.page.locator("dialog .tl-picture-whole")).to_be_visible()
    phone.fits()
    phone.page.keyboard.press("Escape")


def test_the_keys_are_listed_in_the_menu_and_on_a_question_mark(site: Site):
    phone = Phone(site)
    keys = phone.page.get_by_role("dialog", name=zh("keys.title"))
    phone.of_view("keys.title")
    for key in ("enter", "escape", "up", "new", "search", "regenerate", "continue", "version", "tokens", "map", "help"):
        expect(keys.get_by_role("definition").get_by_text(zh(f"key.{key}.does"), exact=True)).to_be_visible()
    phone.fits()
    phone.tap("close", keys)
    expect(keys).to_have_count(0)
    phone.page.locator(".tl-welcome h1").tap()
    phone.page.keyboard.press("?")
    expect(keys).to_be_visible()
    phone.page.keyboard.press("Escape")
    expect(keys).to_have_count(0)
