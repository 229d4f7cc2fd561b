"""People chat: every button of the chat view, driven in a real browser."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Site, message_menu, reply, say

pytestmark = pytest.mark.browser

LAST = ".tl-message.tl-last"


def test_a_question_is_answered_and_both_are_there_after_a_reload(site: Site):
    page = site.open()
    site.model.reply = lambda request: "Blue light **scatters** most.\n\n```python\nprint('sky')\n```"
    say(page, "Why is the sky blue?")
    assert "Blue light scatters most." in reply(page)
    assert re.search(r"\?chat=\d+$", page.url)
    expect(page.locator(f"{LAST} strong")).to_have_text("scatters")
    expect(page.locator(f"{LAST} pre .t")).to_have_text("print")
    expect(page.locator(f"{LAST} .tl-figures")).to_contain_text("tokens")
    expect(page.locator(".tl-row-title").first).to_have_text("Why is the sky blue?")
    page.reload()
    expect(page.locator(".tl-message")).to_have_count(2)
    expect(page.locator(f"{LAST} strong")).to_have_text("scatters")


def test_a_reply_grows_in_front_of_people_and_goes_on_after_a_reload(site: Site):
    site.model.pace = 0.02
    site.model.reply = lambda request: "word " * 80
    page = site.open()
    say(page, "go on")
    body = page.locator(f"{LAST} .tl-body")
    page.wait_for_function("document.querySelector('.tl-last[data-role=assistant] .tl-body')?.innerText.length > 20")
    first = len(body.inner_text())
    page.wait_for_function(f"document.querySelector('.tl-last .tl-body').innerText.length > {first + 20}")
    page.reload()
    page.wait_for_function(f"document.querySelector('.tl-last[data-role=assistant] .tl-body')?.innerText.length > {first}")
    assert page.locator(LAST).get_attribute("data-state") == "streaming"
    assert reply(page).count("word") == 80


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_keeps_what_is_there_and_continue_goes_on(site: Site, way: str):
    site.model.pace = 0.02
    site.model.reply = lambda request: "never " * 200
    page = site.open()
    say(page, "talk")
    page.wait_for_function("document.querySelector('.tl-last[data-role=assistant] .tl-body')?.innerText.length > 20")
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator(LAST)).to_have_attribute("data-state", "cut")
    expect(page.locator(f"{LAST} .tl-note")).to_contain_text("Stopped.")
    stopped = reply(page)
    site.model.pace = 0
    site.model.reply = lambda request: " and more."
    page.locator(f"{LAST} .tl-note").get_by_role("button", name="Continue").click()
    expect(page.locator(LAST)).to_have_attribute("data-state", "whole")
    assert reply(page) == stopped + " and more."


def test_versions_are_made_and_stepped_through(site: Site):
    answers = iter(["first answer", "second answer"])
    site.model.reply = lambda request: next(answers)
    page = site.open()
    say(page, "again and again")
    assert reply(page) == "first answer"
    page.locator(LAST).get_by_role("button", name="Regenerate").click()
    expect(page.locator(f"{LAST} .tl-versions")).to_contain_text("2/2")
    assert reply(page) == "second answer"
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("first answer")
    page.get_by_role("button", name="Next version").click()
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("second answer")


def test_a_message_of_ones_own_is_edited_and_answered_again(site: Site):
    site.model.reply = lambda request: "You said: " + request.prompt[-1].content  # type: ignore[union-attr]
    page = site.open()
    say(page, "helo")
    assert reply(page) == "You said: helo"
    page.press(".tl-composer textarea", "ArrowUp")
    page.locator(".tl-edit").fill("hello")
    page.get_by_role("button", name="Save and send").click()
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("You said: hello")
    expect(page.locator(".tl-message").first.locator(".tl-versions")).to_contain_text("2/2")
    page.locator(LAST).get_by_role("button", name="Edit").click()
    page.locator(".tl-edit").fill("my words")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("my words")


def test_deleted_messages_and_chats_come_back_by_undo(site: Site):
    page = site.open()
    say(page, "delete me")
    reply(page)
    message_menu(page, "Delete")
    expect(page.locator(".tl-message")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".tl-message")).to_have_count(2)
    page.locator(".tl-row.tl-current").hover()
    page.locator(".tl-row.tl-current").get_by_role("button").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(page.locator(".tl-welcome h1")).to_be_visible()
    expect(page.locator(".tl-row-title", has_text="delete me")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".tl-row-title", has_text="delete me")).to_have_count(1)


def test_a_chat_is_renamed_pinned_and_found(site: Site):
    page = site.open()
    say(page, "一个关于图书馆的问题")
    reply(page)
    page.locator(".tl-row.tl-current").hover()
    page.locator(".tl-row.tl-current").get_by_role("button").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.locator("dialog input").fill("Libraries")
    page.locator("dialog").get_by_role("button", name="Save").click()
    expect(page.locator(".tl-current .tl-row-title")).to_have_text("Libraries")
    page.locator(".tl-row.tl-current").get_by_role("button").click()
    page.get_by_role("menuitem", name="Pin").click()
    expect(page.locator(".tl-list h2").first).to_have_text("Pinned")
    for words in ("图书", "图书馆", "librar"):
        page.get_by_role("searchbox").fill(words)
        expect(page.locator(".tl-row-title")).to_have_text(["Libraries"])
    page.get_by_role("searchbox").fill("no such words")
    expect(page.locator(".tl-nothing")).to_be_visible()


def test_the_list_is_grouped_by_date(site: Site):
    said = datetime.now()
    site.app.store.for_owner("local").chats.create(title="a dated chat")
    for days, group in ((0, "Today"), (1, "Yesterday"), (4, "Previous 7 days"), (20, "Previous 30 days"), (100, "Older")):
        page = site.empty()
        page.clock.set_fixed_time(said + timedelta(days=days))
        page.goto(site.url, wait_until="commit")
        expect(page.locator(".tl-list section", has_text="a dated chat").locator("h2")).to_have_text(group)


def test_what_is_told_of_a_chat_that_was_left_does_not_close_the_one_that_is_open(site: Site):
    left, opened = (site.app.store.for_owner("local").chats.create(title=title) for title in ("left", "opened"))
    page = site.open(f"?chat={left.id}")
    page.locator(".tl-row-title", has_text="opened").click()
    page.wait_for_url(f"**/?chat={opened.id}")
    site.app.store.for_owner("local").chats.delete(left.id)
    expect(page.locator(".tl-row-title", has_text="left")).to_have_count(0)
    assert page.url.endswith(f"chat={opened.id}")
    site.app.store.for_owner("local").chats.delete(opened.id)
    page.wait_for_function("!location.search.includes('chat=')")


def test_branching_makes_a_chat_of_its_own(site: Site):
    page = site.open()
    say(page, "the beginning")
    reply(page)
    before = page.url
    message_menu(page, "Branch into a new chat")
    page.wait_for_function(f"location.href !== '{before}'")
    expect(page.locator(".tl-message")).to_have_count(2)


def test_two_tabs_on_one_chat_see_each_others_messages(site: Site):
    one = site.open()
    say(one, "from the first tab")
    reply(one)
    two = one.context.new_page()
    two.goto(one.url)
    expect(two.locator(".tl-message")).to_have_count(2)
    say(two, "from the second tab")
    reply(two)
    one.bring_to_front()
    expect(one.locator(".tl-message")).to_have_count(4)
    expect(one.locator(".tl-message").nth(2)).to_contain_text("from the second tab")


def test_the_settings_of_a_chat_are_kept_and_reach_the_model(site: Site):
    page = site.open()
    page.get_by_role("button", name="Chat settings").click()
    page.get_by_label("System prompt").fill("Answer like a pirate.")
    page.locator("dialog").get_by_role("button", name="Save").click()
    say(page, "hello")
    reply(page)
    assert site.model.requests[-1].prompt[0].content == "Answer like a pirate."  # type: ignore[union-attr]
    page.reload()
    expect(page.locator(".tl-message")).to_have_count(2)
    page.get_by_role("button", name="Chat settings").click()
    expect(page.get_by_label("System prompt")).to_have_value("Answer like a pirate.")


def test_a_preset_is_chosen_from_the_menu(site: Site):
    page = site.open()
    page.locator(".tl-preset").click()
    page.get_by_role("menuitemradio", name="Deterministic", exact=True).click()
    expect(page.locator(".tl-preset")).to_contain_text("Deterministic")
    say(page, "hello")
    reply(page)
    assert site.model.requests[-1].sampling.greedy
    page.locator(".tl-preset").click()
    page.get_by_role("menuitemradio", name="simple-1").click()
    expect(page.locator(".tl-preset")).to_contain_text("simple-1")


def test_hostile_replies_run_nothing(site: Site):
    hostile = (
        "<script>window.hacked = 1</script> <img src=x onerror='window.hacked = 1'> <svg onload='window.hacked = 1'>\n\n"
        "[go](javascript:window.hacked=1) $\\text{<img src=x onerror=window.hacked=1>}$\n\n"
        "```html\n<img src=x onerror=window.hacked=1>\n```\n\n<details open ontoggle='window.hacked = 1'>"
    )
    site.model.reply = lambda request: hostile
    page = site.open()
    say(page, hostile)
    assert "<script>" in reply(page)
    for link in page.locator(f"{LAST} .tl-body a").all():
        link.click()
    page.reload()
    expect(page.locator(".tl-message")).to_have_count(2)
    assert page.evaluate("window.hacked") is None


def test_keys_do_what_the_list_says(site: Site):
    page = site.open()
    box = page.locator(".tl-composer textarea")
    box.focus()
    page.keyboard.type("two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    assert box.input_value() == "two\nlines"
    page.keyboard.press("Enter")
    reply(page)
    expect(page.locator(".tl-message").first.locator(".tl-body")).to_have_text("two\nlines")
    page.keyboard.press("Control+Shift+R")
    expect(page.locator(f"{LAST} .tl-versions")).to_contain_text("2/2")
    page.keyboard.press("Control+Shift+F")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Control+Shift+S")
    expect(page.locator(".tl-side")).to_have_attribute("data-open", "false")
    page.keyboard.press("Control+Shift+S")
    page.keyboard.press("Control+Shift+O")
    expect(page.locator(".tl-welcome h1")).to_be_visible()
    page.locator(".tl-scroll").click(position={"x": 6, "y": 6})
    page.keyboard.press("?")
    expect(page.locator("dialog .tl-keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_a_draft_survives_a_reload_and_a_refused_message_comes_back(site: Site):
    page = site.open()
    page.fill(".tl-composer textarea", "not yet finished")
    page.reload()
    expect(page.locator(".tl-composer textarea")).to_have_value("not yet finished")
    site.app.manager.unload()
    try:
        page.press(".tl-composer textarea", "Enter")
        expect(page.locator(".tl-toast.tl-wrong")).to_contain_text("No model is loaded")
        expect(page.locator(".tl-composer textarea")).to_have_value("not yet finished")
        expect(page.locator(".tl-model")).to_contain_text("No model")
        expect(page.locator(".tl-welcome")).to_contain_text("There is no model yet")
    finally:
        site.app.manager.replace("echo", lambda report: site.model)


def test_on_a_phone_in_chinese_the_list_is_closed_and_everything_fits(site: Site):
    site.model.reply = lambda request: "```\n" + "long " * 60 + "\n```\n\n| " + "column | " * 12 + "\n|" + "---|" * 12
    page = site.open(width=390, height=844, locale="zh-CN", has_touch=True)
    expect(page.locator(".tl-side")).to_have_attribute("data-open", "false")
    expect(page.get_by_role("tab", name="文本生成")).to_be_visible()
    expect(page.get_by_placeholder("输入消息")).to_be_visible()
    say(page, "你好")
    reply(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.querySelector('.tl-scroll').scrollWidth") <= 390
    page.get_by_role("button", name="显示或隐藏对话列表").click()
    page.get_by_role("link", name="你好").click()
    expect(page.locator(".tl-side")).to_have_attribute("data-open", "false")


def test_long_chats_show_their_end_and_earlier_messages_on_demand(site: Site):
    chat = site.app.store.for_owner("local").chats.create(title="Long")
    parent = None
    for number in range(150):
        parent = (
            site.app.store.for_owner("local")
            .messages.add(chat.id, parent, "assistant" if number % 2 else "user", f"message {number}")
            .id
        )
    page = site.open(f"/?chat={chat.id}")
    expect(page.locator(".tl-message").last).to_contain_text("message 149")
    assert page.locator(".tl-message").count() == 60
    page.locator(".tl-scroll").evaluate("element => element.scrollTop = 0")
    page.wait_for_function("document.querySelectorAll('.tl-message').length >= 120")


def test_search_results_lead_to_the_message(site: Site):
    chat = site.app.store.for_owner("local").chats.create(title="Haystack")
    parent = None
    for number in range(80):
        text = "the silver needle" if number == 3 else f"hay {number}"
        parent = site.app.store.for_owner("local").messages.add(chat.id, parent, "assistant" if number % 2 else "user", text).id
    page = site.open()
    page.get_by_role("searchbox").fill("silver needle")
    page.locator(".tl-row-link:has(.tl-row-found)").click()
    expect(page.locator(".tl-message", has_text="silver needle")).to_be_in_viewport()
