"""People look at a reply from all sides: tokens, columns, prompts, versions, the tree, marks; by mouse, keyboard and thumb."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect

from modules.chats.records import TokenStretch
from modules.errors import EngineGone
from modules.generation.types import Token, TokenAlternative
from tests.browser.conftest import Site, copied, message_menu, open_menu, reply, say, type_and_send, until

pytestmark = pytest.mark.browser

LAST = ".tl-message.tl-last"


def all_finished(page: Page) -> None:
    page.wait_for_function("[...document.querySelectorAll('.tl-message')].every(m => m.dataset.state !== 'streaming')")


# --- tokens


def test_tokens_are_coloured_and_another_one_goes_on_as_a_version(site: Site):
    site.model.reply = lambda request: "abc"
    page = site.open()
    say(page, "spell")
    reply(page)
    open_menu(page, "Look at this conversation", "Token probabilities")
    expect(page.locator(f"{LAST} .tl-note")).to_contain_text("No token probabilities were kept")
    page.locator(f"{LAST} .tl-note").get_by_role("button", name="Compute them").click()
    expect(page.locator(f"{LAST} .tl-token")).to_have_text(["a", "b", "c"])
    site.model.reply = lambda request: "YZ"
    page.locator(f"{LAST} .tl-token").nth(1).click()
    menu = page.get_by_role("menu")
    expect(menu.get_by_role("menuitemradio")).to_have_count(8)
    expect(menu.locator("[aria-checked=true]")).to_contain_text("61%")
    menu.get_by_role("menuitemradio", name="d").click()
    expect(page.locator(f"{LAST} .tl-tokens")).to_have_text("adYZ")
    expect(page.locator(f"{LAST} .tl-versions")).to_contain_text("2/2")
    page.reload()
    expect(page.locator(f"{LAST} .tl-token")).to_have_text(["a", "d", "Y", "Z"])
    page.keyboard.press("Control+Shift+L")
    expect(page.locator(".tl-tokens")).to_have_count(0)
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("adYZ")


def test_tokens_come_live_and_are_reached_by_keyboard(site: Site):
    site.app.store.for_owner("local").preferences.set("token_view", True)
    site.model.reply, site.model.pace = lambda request: "slowly but surely", 0.08
    page = site.open()
    say(page, "go")
    page.wait_for_function("document.querySelectorAll('.tl-last .tl-token').length > 2")
    assert page.locator(LAST).get_attribute("data-state") == "streaming"
    assert page.locator(f"{LAST} .tl-body").is_hidden()
    reply(page)
    expect(page.locator(f"{LAST} .tl-tokens")).to_have_text("slowly but surely")
    page.locator(f"{LAST} .tl-tokens").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(f"{LAST} .tl-token").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menu", name="What could stand here")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(f"{LAST} .tl-token").nth(1)).to_be_focused()


def test_the_tokens_of_a_very_long_reply_are_drawn_where_they_are_seen(site: Site):
    site.app.store.for_owner("local").preferences.set("token_view", True)
    store, text = site.app.store, "abcdefg\n" * 499 + "abcdefgh"
    chat = store.for_owner("local").chats.create()
    question = store.for_owner("local").messages.add(chat.id, None, "user", "at length")
    long = store.for_owner("local").messages.add(chat.id, question.id, "assistant", text, model="echo")
    others = (TokenAlternative(97, "a", -0.5), TokenAlternative(98, "b", -1.0))
    tokens_kept = tuple(Token(ord(letter), letter, -0.5, others) for letter in text)
    store.for_owner("local").tokens.replace(long.id, [TokenStretch(0, tokens_kept)])
    page = site.open()
    page.add_init_script("""
        window.mostDrawn = 0;
        let drawn = 0;
        new MutationObserver((changes) => {
          for (const change of changes) for (const node of change.addedNodes)
            if (node.nodeType === 1) drawn += node.matches(".tl-token") ? 1 : node.querySelectorAll(".tl-token").length;
          window.mostDrawn = Math.max(window.mostDrawn, drawn);
          requestAnimationFrame(() => { drawn = 0; });
        }).observe(document, {childList: true, subtree: true});
    """)
    page.goto(f"{site.url}?chat={chat.id}")
    tokens = page.locator(f"{LAST} .tl-tokens")
    page.wait_for_function("document.querySelector('.tl-last .tl-tokens')?.textContent.length === 4000")
    expect(tokens.locator("[data-place='0.3999']")).to_be_visible()
    assert page.evaluate("[mostDrawn, document.querySelectorAll('.tl-token').length].every(count => count <= 1200)")
    expect(tokens.locator("[data-place='0.0']")).to_have_count(0)
    page.locator(".tl-scroll").evaluate("scroller => scroller.scrollTo(0, 0)")
    expect(tokens.locator("[data-place='0.0']")).to_be_visible()
    expect(tokens.locator("[data-place='0.2000']")).to_have_count(0)
    tokens.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(tokens.locator("[data-place='0.3998']")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menu", name="What could stand here")).to_be_visible()
    assert page.evaluate("document.querySelector('.tl-last .tl-tokens').textContent.length") == 4000


# --- columns


def test_the_same_message_is_answered_in_columns_and_one_is_kept(site: Site):
    site.model.load_adapter("tuned", "")
    site.model.reply, site.model.pace = lambda request: f"answer of {request.adapter or 'the base'} " * 12, 0.01
    page = site.open()
    page.fill(".tl-composer textarea", "who are you?")
    open_menu(page, "More ways to go on", "Compare answers")
    dialog = page.locator("dialog")
    expect(dialog.get_by_label("Adapter").first).to_have_value("")
    expect(dialog.get_by_label("Adapter").nth(1)).to_have_value("tuned")
    dialog.get_by_label("A third column").check()
    dialog.get_by_label("Preset").nth(2).select_option("Deterministic")
    dialog.get_by_role("button", name="Compare").click()
    expect(page.locator(".tl-compared h3")).to_have_text(["Base model", "+ tuned", "+ tuned · Deterministic"])
    page.wait_for_function("[...document.querySelectorAll('.tl-compared .tl-body')].every(body => body.innerText.length > 10)")
    expect(page.locator(".tl-compared .tl-message[data-state=streaming]")).to_have_count(3)
    page.reload()
    page.wait_for_function("document.querySelectorAll('.tl-compared').length === 3")
    all_finished(page)
    expect(page.locator(".tl-compared .tl-body").nth(0)).to_contain_text("answer of the base")
    expect(page.locator(".tl-compared .tl-body").nth(1)).to_contain_text("answer of tuned")
    expect(page.locator(".tl-compared .tl-figures").nth(1)).to_contain_text("echo + tuned")
    page.locator(".tl-compared").nth(1).get_by_role("button", name="Keep this one").click()
    expect(page.locator(".tl-compared")).to_have_count(0)
    expect(page.locator(f"{LAST} .tl-body")).to_contain_text("answer of tuned")
    expect(page.locator(f"{LAST} .tl-versions")).to_contain_text("2/3")
    expect(page.locator(".tl-composer textarea")).to_have_value("")


def test_stop_ends_all_columns_at_once(site: Site):
    site.model.reply, site.model.pace = lambda request: "x" * 500, 0.02
    page = site.open()
    page.fill(".tl-composer textarea", "go")
    page.keyboard.press("Control+Shift+K")
    page.locator("dialog").get_by_role("button", name="Compare").click()
    page.wait_for_function("document.querySelectorAll('.tl-compared .tl-message[data-state=streaming]').length === 2")
    page.keyboard.press("Escape")
    expect(page.locator(".tl-compared .tl-message[data-state=cut]")).to_have_count(2)


# --- the prompt and the context


def test_the_exact_prompt_and_the_fullness_of_the_context_are_shown_before_sending(site: Site):
    page = site.open()
    say(page, "first question")
    reply(page)
    page.fill(".tl-composer textarea", "12345")
    turns = ("user\nfirst question", "assistant\nAn answer.", "user\n12345")
    whole = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    expect(page.locator(".tl-context-words")).to_have_text(f"{len(whole)} / 4,096 tokens")
    page.locator(".tl-context").click()
    pane = page.get_by_role("dialog", name="What the model sees")
    expect(pane.locator(".tl-prompt")).to_contain_text("<|im_start|>user\n12345<|im_end|>\n<|im_start|>assistant")
    expect(pane.locator(".tl-piece-user").last).to_have_text("12345")
    expect(pane.locator(".tl-piece-template").last).to_contain_text("<|im_start|>assistant")
    pane.get_by_role("button", name="Close").click()
    message_menu(page, "What the model saw")
    expect(page.locator(".tl-prompt")).not_to_contain_text("12345")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_what_does_not_fit_is_told_before_sending_and_marked_in_the_prompt(site: Site):
    page = site.open()
    say(page, "the oldest question " + "x" * 1500)
    reply(page)
    say(page, "another question " + "y" * 1500)
    reply(page)
    page.fill(".tl-composer textarea", "z" * 1500)
    expect(page.locator(".tl-context-words")).to_contain_text("the oldest")
    page.keyboard.press("Control+Shift+E")
    expect(page.locator(".tl-prompt .tl-piece-cut")).to_contain_text("the oldest question")


def test_a_template_that_fails_its_test_is_named_under_the_box(site: Site):
    site.model.chat_template = "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}bot:"
    page = site.open()
    expect(page.locator(".tl-hint")).to_contain_text(
        "The chat template of echo fails its test. It leaves out what the model said."
    )


def test_a_template_without_a_place_for_the_system_prompt_says_where_it_goes(site: Site):
    site.model.chat_template = (
        "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    page = site.open()
    expect(page.locator(".tl-hint")).not_to_contain_text("no place for a system prompt")
    page.get_by_role("button", name="Chat settings").click()
    page.get_by_label("System prompt").fill("Answer like a pirate.")
    page.locator("dialog").get_by_role("button", name="Save").click()
    expect(page.locator(".tl-hint")).to_contain_text("no place for a system prompt: it goes before your first message")
    say(page, "hello")
    reply(page)
    message_menu(page, "What the model saw")
    expect(page.locator(".tl-prompt")).to_contain_text("<|user|>Answer like a pirate.\n\nhello")
    expect(page.get_by_role("dialog")).to_contain_text("They stand in the nearest turn that it knows.")


def test_an_engine_that_died_is_told_until_it_is_there_again(site: Site):
    engine, model = site.app.manager, site.model
    model.pace, model.fails_after, model.failure = 0.1, 2, EngineGone("The engine at far has died.")
    page = site.open()
    say(page, "hello")
    expect(page.locator(".tl-message").last).to_contain_text("The engine at far has died.")
    until(page, lambda: engine.status.state == "asleep")
    another = site.open()
    expect(another.locator(".tl-welcome")).to_contain_text("The engine at far has died. Your message loads echo again.")
    model.pace, model.fails_after, model.closed = 0, None, False
    say(another, "hello")
    reply(another)
    assert engine.status.state == "ready"


# --- made again, and by programs


def test_a_reply_runs_again_exactly_and_says_how_it_came_out(site: Site):
    texts = iter(["one text", "one text", "another text"])
    site.model.reply = lambda request: next(texts)
    page = site.open()
    say(page, "draw")
    reply(page)
    message_menu(page, "Run again exactly")
    expect(page.locator(f"{LAST} .tl-note")).to_contain_text("Run again: the same text.")
    message_menu(page, "Run again exactly")
    expect(page.locator(f"{LAST} .tl-note")).to_contain_text("Run again: the text differs.")
    first, second, third = site.model.requests[-3:]
    assert first == second == third
    page.locator(f"{LAST} .tl-note").get_by_role("button", name="Compare versions").click()
    expect(page.locator(".tl-diff del")).to_have_text("one")
    expect(page.locator(".tl-diff ins")).to_have_text("another")


def test_the_copied_programs_run_and_ask_for_the_same(site: Site):
    page = site.open(permissions=["clipboard-read", "clipboard-write"])
    say(page, 'it\'s $HOME or "nothing"?')
    reply(page)
    asked = site.model.requests[-1]
    for item, run in (("Copy as curl", ["bash", "-c"]), ("Copy as Python", [sys.executable, "-W", "ignore", "-c"])):
        message_menu(page, item)
        program = copied(page)
        done = subprocess.run([*run, program], capture_output=True, text=True, timeout=60, check=True)
        assert "An answer." in (json.loads(done.stdout)["choices"][0]["message"]["content"] if "curl" in item else done.stdout)
        again = site.model.requests[-1]
        assert again is not asked and again == asked


# --- versions, the tree, marks


def test_the_map_shows_all_branches_and_leads_there(site: Site):
    answers = iter(["first way", "second way", "end of the second"])
    site.model.reply = lambda request: next(answers)
    page = site.open()
    say(page, "start")
    reply(page)
    page.locator(LAST).get_by_role("button", name="Regenerate").click()
    expect(page.locator(f"{LAST} .tl-versions")).to_contain_text("2/2")
    reply(page)
    say(page, "onward")
    reply(page)
    page.keyboard.press("Control+Shift+M")
    tree = page.get_by_role("tree", name="Map of this chat")
    expect(tree.get_by_role("treeitem")).to_have_count(5)
    expect(tree.locator("[aria-current]")).to_contain_text("end of the second")
    page.keyboard.press("ArrowUp")
    tree.get_by_role("button", name="first way").click()
    expect(page.locator("dialog")).to_have_count(0)
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("first way")
    page.keyboard.press("Control+Shift+>")
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("end of the second")


def test_marked_replies_become_a_data_set(site: Site):
    answers = iter(["good", "bad"])
    site.model.reply = lambda request: next(answers)
    page = site.open()
    say(page, "question")
    reply(page)
    page.locator(LAST).get_by_role("button", name="Regenerate").click()
    expect(page.locator(f"{LAST} .tl-versions")).to_contain_text("2/2")
    reply(page)
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("good")
    page.locator(LAST).get_by_role("button", name="Good example").click()
    expect(page.locator(LAST).get_by_role("button", name="Not a good example")).to_have_attribute("aria-pressed", "true")
    message_menu(page, "Better than another version")
    expect(page.locator(f"{LAST} .tl-note")).to_contain_text("Chosen over version 2.")
    open_menu(page, "Look at this conversation", "Marked replies as training data")
    expect(page.get_by_role("heading", name="Preferences: 1")).to_be_visible()
    page.get_by_label("Name of the data set").nth(1).fill("picked")
    page.get_by_role("button", name="Save as a data set").nth(1).click()
    expect(page.locator(".tl-toast", has_text="picked.jsonl has 1 rows")).to_be_visible()
    row = json.loads((site.app.training.places.datasets / "picked.jsonl").read_text())
    assert row["chosen"] == [{"role": "assistant", "content": "good"}] and row["rejected"][0]["content"] == "bad"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").first.click()
    assert json.loads(download.value.path().read_text())["messages"][-1]["content"] == "good"


# --- the box and what is under its plus


def test_messages_are_put_in_taken_out_and_replies_begin_as_told(site: Site):
    page = site.open()
    page.fill(".tl-composer textarea", "I said so")
    open_menu(page, "More ways to go on", "Add as your message")
    expect(page.locator(".tl-message")).to_have_count(1)
    page.fill(".tl-composer textarea", "and I replied")
    open_menu(page, "More ways to go on", "Add as the model's reply")
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("and I replied")
    open_menu(page, "More ways to go on", "Start replies with")
    page.locator("dialog textarea").fill("Well, ")
    page.locator("dialog").get_by_role("button", name="Save").click()
    expect(page.locator(".tl-start")).to_contain_text("Replies start with “Well, ”")
    say(page, "what now?")
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("Well, An answer.")
    all_finished(page)
    open_menu(page, "More ways to go on", "Remove the last exchange")
    expect(page.locator(".tl-message")).to_have_count(2)
    expect(page.locator(".tl-composer textarea")).to_have_value("what now?")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".tl-message")).to_have_count(4)
    expect(page.locator(".tl-composer textarea")).to_have_value("")
    page.get_by_role("button", name="Let replies start freely").click()
    expect(page.locator(".tl-start")).to_be_hidden()


def test_the_model_writes_the_users_message_into_the_box_and_can_be_stopped(site: Site):
    page = site.open()
    say(page, "hello")
    reply(page)
    site.model.reply = lambda request: "What shall we do?"
    page.fill(".tl-composer textarea", "So: ")
    page.keyboard.press("Control+Shift+U")
    expect(page.locator(".tl-composer textarea")).to_have_value("So: What shall we do?")
    expect(page.locator(".tl-message")).to_have_count(2)
    site.model.reply, site.model.pace = lambda request: "on and on " * 100, 0.02
    page.keyboard.press("Control+Shift+U")
    page.wait_for_function("document.querySelector('.tl-composer textarea').value.length > 40")
    page.keyboard.press("Escape")
    expect(page.locator(".tl-composer textarea")).to_be_editable()
    page.wait_for_timeout(300)
    assert site.model.streams[-1].closed


# --- waiting, stopping, thinking


def test_the_place_in_the_queue_is_shown_and_stop_is_at_once_and_only_ones_own(site: Site):
    from modules.generation.types import Prefill

    one, two = site.open(), site.open()
    with site.all_wait(2) as waiting:
        say(one, "mine")
        expect(one.locator(f"{LAST} .tl-status")).to_contain_text("Waiting in line, place 2")
        say(two, "another's")
        expect(two.locator(f"{LAST} .tl-status")).to_contain_text("place 2")
        waiting[1].put(Prefill(512, 4000))
        expect(two.locator(f"{LAST} .tl-status")).to_contain_text("Reading, 512 of 4,000 tokens")
        one.get_by_role("button", name="Stop").click()
        expect(one.locator(LAST)).to_have_attribute("data-state", "cut")
        assert waiting[0].closed and not waiting[1].closed
        two.keyboard.press("Escape")
        expect(two.locator(LAST)).to_have_attribute("data-state", "cut")
        assert waiting[1].closed


def test_thinking_folds_and_tables_formulas_and_code_are_drawn_while_it_is_written(site: Site):
    site.model.reply = lambda request: (
        "<think>Let me see.\n\n"
        + "Hm. " * 10
        + "</think>Now $E = mc^2$:\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nprint(1)\n```\n\nand so on, "
        + "on " * 100
    )
    site.model.pace = 0.01
    page = site.open()
    say(page, "think")
    expect(page.locator(f"{LAST} .tl-thinking summary")).to_have_text("Thinking …")
    page.wait_for_selector(f"{LAST} .tl-code")
    assert page.locator(LAST).get_attribute("data-state") == "streaming"
    expect(page.locator(f"{LAST} .tl-thinking summary")).to_have_text("Thinking")
    expect(page.locator(f"{LAST} math")).to_have_count(1)
    expect(page.locator(f"{LAST} table td")).to_have_text(["1", "2"])
    expect(page.locator(f"{LAST} .tl-code").get_by_role("button", name="Copy code")).to_be_visible()
    assert page.locator(f"{LAST} .tl-thinking").get_attribute("open") is None
    page.keyboard.press("Escape")


# --- two tabs


def test_a_stale_tab_overwrites_nothing(site: Site):
    site.model.reply = lambda request: "answer to " + request.prompt[-1].content  # type: ignore[union-attr]
    one = site.open()
    say(one, "common")
    reply(one)
    two = one.context.new_page()
    two.goto(one.url)
    expect(two.locator(".tl-message")).to_have_count(2)
    frozen = "Object.defineProperty(document, 'hidden', {get: () => true})"
    two.evaluate(frozen)  # it hears no more of the others, as on a sleeping laptop
    say(one, "from one")
    reply(one)
    two.evaluate("window.textloomChat.refresh = async () => true")
    type_and_send(two, "from two")
    two.wait_for_timeout(500)
    chat = int(one.url.split("chat=")[1])
    texts = {message.content for message in site.app.store.for_owner("local").messages.tree(chat)}
    assert texts == {"common", "answer to common", "from one", "answer to from one", "from two", "answer to from two"}
    one.bring_to_front()
    expect(one.locator(".tl-message").nth(2).locator(".tl-versions")).to_contain_text("2/2")
    one.get_by_role("button", name="Chat settings").click()
    one.get_by_label("System prompt").fill("Be kind.")
    site.app.store.for_owner("local").chats.change_settings(chat, {"reply_start": "Well, "})
    one.locator("dialog").get_by_role("button", name="Save").click()
    one.wait_for_timeout(300)
    settings = site.app.store.for_owner("local").chats.get(chat).settings
    assert (settings["system_prompt"], settings["reply_start"]) == ("Be kind.", "Well, ")


# --- the phone


def test_on_a_phone_everything_is_in_the_menus_and_fits(site: Site):
    page = site.open(width=390, height=844, locale="zh-CN", has_touch=True)
    say(page, "你好")
    reply(page)
    tools = page.locator(f"{LAST} .tl-tools")
    expect(tools.get_by_role("button", name="编辑")).to_be_hidden()
    tools.get_by_role("button", name="这条消息的更多操作").click()
    for name in (
        "编辑",
        "继续",
        "好例子",
        "从这里分出新对话",
        "比较回答…",
        "模型当时看到的内容",
        "词元概率",
        "完全照样再运行一次",
        "复制为 curl",
        "删除",
    ):
        expect(page.get_by_role("menuitem", name=name)).to_be_visible()
    page.get_by_role("menuitem", name="模型当时看到的内容").click()
    expect(page.get_by_role("dialog", name="模型看到的内容")).to_be_visible()
    page.get_by_role("button", name="关闭").click()
    page.get_by_role("button", name="更多继续方式").click()
    page.get_by_role("menuitem", name="比较回答…").click()
    page.locator("dialog").get_by_role("button", name="比较").click()
    expect(page.locator(".tl-compared")).to_have_count(2)
    all_finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".tl-compared").nth(1).get_by_role("button", name="保留这个").click()
    expect(page.locator(".tl-compared")).to_have_count(0)


def test_the_keyboard_alone_does_it_all(site: Site):
    page = site.open()
    page.locator(".tl-composer textarea").focus()
    page.keyboard.type("question")
    page.keyboard.press("Enter")
    reply(page)
    page.keyboard.press("Control+Shift+Enter")
    expect(page.locator(f"{LAST} .tl-body")).to_have_text("An answer.An answer.")
    page.keyboard.press("Control+Shift+G")
    expect(page.locator(LAST).get_by_role("button", name="Not a good example")).to_be_visible()
    page.locator(".tl-composer textarea").focus()
    more = page.locator(f"{LAST} .tl-tools [aria-haspopup]")
    for _ in range(6):  # past what stands beside the box
        page.keyboard.press("Shift+Tab")
        if more.evaluate("button => button === document.activeElement"):
            break
    expect(more).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menu", name="More for this message")).to_be_visible()
    page.keyboard.press("End")
    expect(page.get_by_role("menuitem", name="Delete")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Shift+Backspace")
    expect(page.locator(".tl-message")).to_have_count(0)
    expect(page.locator(".tl-composer textarea")).to_have_value("question")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('.tl button')].filter(b => b.checkVisibility() && !b.ariaLabel && !b.innerText.trim()).length"
    )
    assert unnamed == 0
