"""Text as people and models write it, on the page: money, thinking, code in code, formulas that never close, long histories."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest

from modules.api.page.markdown import LONGEST_FORMULA, LiveMarkdown, render
from modules.api.page.reply_stream import difference
from modules.chats.records import Figures
from modules.chats.search_index import MOST_HITS
from modules.chats.store import ChatStore
from modules.generation.reasoning import opened_by, segments, without_reasoning
from tests.api.page.test_chats import Page
from tests.fakes import EchoModel, loaded_in
from tests.in_process import make_app
from tests.shown import after, streamed

INPUTS = Path(__file__).parent / "inputs"


def html_of(text: str) -> str:
    return "\n".join(block.html for block in render(text))


def words_of(blocks: list[Any]) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", "\n".join(block.html for block in blocks)))


def code_of(text: str) -> list[str]:
    """What the copy buttons of the code in a message copy."""
    return [
        html.unescape(re.sub(r"<[^>]*>", "", code))
        for code in re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", html_of(text), re.DOTALL)
    ]


# --- money


@pytest.mark.parametrize(
    "money",
    [
        "A$3 and 5$ more",
        "it costs $3 or 5$",
        "US$5, HK$40 and NT$150",
        "between $10 and $20, or 30$ at most",
        "$1,000.50 in March, 900$ in May",
        "($5 for the US$ version)",
        "$5/month vs 6$",
        "$1k–$2k",
        "$.50 each, 3$ for six",
        "价格从$5到10$不等",
        "花了5$，又花了10$",
        "（$5）或6$",
        "$1 = 7.2元，2$更多",
        "a $$ place, not a $$$ one",
        "$AAPL/$MSFT",
        "$HOME:$PATH",
    ],
)
def test_money_is_no_formula_and_the_formula_beside_it_is_one(money: str):
    assert html_of(f"{money} here") == f"<p>{money} here</p>"
    for line in (f"{money}, and $x^2$ too.", f"With $x^2$ in mind: {money}, and $y$ too."):
        shown = html_of(line)
        assert html.escape(money, quote=False) in shown
        assert shown.count("<math") == line.count("$x^2$") + line.count("$y$")


@pytest.mark.parametrize(
    "text",
    [
        "$x$ is 5",
        "$2x + 3$",
        "$10^{-5}$",
        r"$3 \text{ and } 5$",
        "$42$",
        "$0.5$",
        r"$5 \times 10$",
        "$5 < x < 10$",
        "$3, 5$",
        "$1 + 1 = 2$",
        "the $n$th",
        "第$n$个",
        "so $$x^2$$ it is",
        "$$\nx^2\n$$",
        r"$50\%$",
    ],
)
def test_what_is_meant_as_a_formula_is_one(text: str):
    assert html_of(text).count("<math") == 1


# --- thinking


@pytest.mark.parametrize(
    "text",
    [
        "Close it with `</think>` and go on.",
        "Close it with </think> and go on.",
        "A line of its own:\n\n</think>\n\nand go on.",
        "```xml\n<think>\nHm.\n</think>\n```\n\nThat is the form.",
        "The end mark is [/THINK] there, and ◁/think▷ elsewhere.",
        "First <think>this</think>, then that.",
        "用`</think>`结束。",
    ],
)
def test_a_mark_that_is_spoken_of_splits_nothing(text: str):
    assert [part.kind for part in segments(text, "")] == ["text"]
    assert without_reasoning(text, "") == text
    live = LiveMarkdown()
    for end in range(1, len(text) + 1):
        assert all(block.kind == "text" for block in live.update(text[:end], ""))


@pytest.mark.parametrize("text", ["Close it with `</think>` and go on.", "Close it with </think> and go on."])
def test_nor_where_nobody_knows_how_the_prompt_ended(text: str):
    assert [part.kind for part in segments(text)] == ["text"]


@pytest.mark.parametrize("opened", [None, "", "<think>"])
def test_thinking_that_speaks_of_its_own_marks_ends_where_it_ends(opened: str | None):
    text = (INPUTS / "thinking-spoken-of.md").read_text(encoding="utf-8")
    assert without_reasoning(text, opened) == "Close it with `</think>`: what follows </think> is said."
    bare = text.removeprefix("<think>\n")
    if opened == "<think>":
        assert without_reasoning(bare, opened) == without_reasoning(text, opened)
    live, shown = LiveMarkdown(), []
    for end in range(len("<think>"), len(text) + 1):
        blocks = list(live.update(text[:end], opened))
        said = [block for block in blocks if block.kind == "text"]
        assert not said or text[:end].count("</think>") > 4  # nothing jumps out of the thinking on its way
        if change := difference(shown, blocks):
            shown = after(shown, change)
    assert shown == render(text, opened)


@pytest.mark.parametrize(
    ("text", "opened", "kinds"),
    [
        ("hm</think>Yes.", "<think>", ["thinking", "text"]),
        ("hm", "<think>", ["thinking"]),
        ("hm[/THINK]Yes.", "[THINK]", ["thinking", "text"]),
        ("<think>hm</think>Yes.", "<think>", ["thinking", "text"]),
        ("hm\n</think>\n\nYes.", None, ["thinking", "text"]),
        ("hm\n</think>\n\nYes.", "", ["text"]),
        ("<think>\n```python\nx = 1\n</think>\n\nYes.", "", ["thinking", "text"]),
    ],
)
def test_what_the_template_opened_is_thinking(text: str, opened: str | None, kinds: list[str]):
    assert [part.kind for part in segments(text, opened)] == kinds


def test_the_end_of_a_prompt_tells_what_it_opened():
    assert opened_by("<|im_start|>assistant\n<think>\n") == "<think>"
    assert opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""
    assert opened_by("<|im_start|>assistant\n") == ""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    app = make_app(tmp_path, EchoModel())
    yield Page(app)
    app.close()


def kinds_of(view: dict[str, Any]) -> list[str]:
    return [kind for _, kind, _ in view["messages"][-1]["blocks"]]


def test_on_the_page_only_what_the_models_template_opened_folds(page: Page):
    model: Any = loaded_in(page.app.manager)
    model.reply = lambda request: "How is it said?\n</think>\n\nSo."
    spoken = page.say("How do I end it?")["chat"]
    assert kinds_of(page.finished(spoken)) == ["text", "text"]
    model.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    thought = page.say("Why?")["chat"]
    view = page.finished(thought)
    assert kinds_of(view) == ["thinking", "text"]
    reply = view["messages"][-1]["id"]
    edited = page.ok("POST", f"/messages/{reply}/edit", {"content": "How is it said?\n\nSo.", "answer": False})
    assert kinds_of(page.view(thought)) == ["text", "text"], edited
    again = page.ok("POST", f"/messages/{reply}/edit", {"content": "Hm.</think>So!", "answer": False})
    assert kinds_of(page.view(thought)) == ["thinking", "text"], again


# --- code that holds code


@pytest.mark.parametrize("step", [1, 7, 64])
@pytest.mark.parametrize("name", ["readme-in-markdown.md", "readme-without-empty-lines.md"])
def test_markdown_that_holds_code_is_one_block_streamed_and_finished(name: str, step: int):
    text = (INPUTS / name).read_text(encoding="utf-8")
    shown = streamed(text, step)
    assert shown[:-1] == render(text)[:-1] and words_of(shown) == words_of(render(text))


def test_it_is_copied_whole():
    text = (INPUTS / "readme-in-markdown.md").read_text(encoding="utf-8")
    inner = text[text.index("# Tide") : text.index("```\n\nCopy it")]
    assert code_of(text) == [inner, "cat README.md\n"]
    assert "Copy it to" in words_of([block for block in render(text) if "<pre" not in block.html])
    text = (INPUTS / "readme-without-empty-lines.md").read_text(encoding="utf-8")
    assert code_of(text) == ["# Tide\n```bash\npip install tide\n```\nDone.\n", "tide now\n"]


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("```markdown\n# T\n```\n\nSo.\n\n```\na\n```\n", ["# T\n", "a\n"]),
        ("```markdown\n# T\n```\nSo:\n```\na\n```\n", ["# T\n", "a\n"]),
        ("```markdown\n# T\n```\nSo:\n```bash\na\n```\n", ["# T\n", "a\n"]),
        ("````markdown\n```\na\n```\n````\nb", ["```\na\n```\n"]),
        ("~~~markdown\n~~~python\na\n~~~\n~~~\nb", ["~~~python\na\n~~~\n"]),
        ("- one:\n  ```markdown\n  ```js\n  a\n  ```\n  ```\n- two", ["```js\na\n```\n"]),
        ("> ```markdown\n> ```js\n> a\n> ```\n> ```\n\nb", ["```js\na\n```\n"]),
        ("```markdown\n```js\na\n```\nstill", ["```js\na\n```\nstill"]),
        ("```python\n```markdown\na\n```\n", ["```markdown\na\n"]),
    ],
)
def test_each_fence_ends_where_it_is_meant_to(text: str, codes: list[str]):
    assert code_of(text) == codes


# --- formulas that never close


LOOPS = {
    "brackets": "\\[ x\n",
    "bare brackets": "\\[\n",
    "brackets in paragraphs": "\\[ x\n\n",
    "brackets in lists": "- \\[ x\n",
    "brackets in quotes": "> \\[ x\n",
    "brackets that close too early": "\\[ x \\] y\n",
    "environments": "\\begin{align} x\n",
    "environments in paragraphs": "\\begin{align} x\n\n",
    "dollars": "$$ x\n\n",
    "inline": "\\( x ",
    "one dollar": "a $x ",
    "tasks": "- [ ] a\n",
    "markdown fences": "```markdown\nx\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", LOOPS.values(), ids=LOOPS)
def test_a_model_that_repeats_itself_costs_in_proportion_to_its_text(line: str):
    def seconds(size: int) -> float:
        text = line * (size // len(line))
        begun = time.process_time()
        render(text)
        return time.process_time() - begun

    seconds(1000)
    small = min(seconds(8_000) for _ in range(3))
    larger: list[float] = []
    while len(larger) < 3 and min(larger, default=inf) >= 24 * max(small, 0.02):
        larger.append(seconds(64_000))
    assert min(larger) < 24 * max(small, 0.02)  # eight times the text; squared it would be sixty-four times the time


def test_a_formula_without_end_is_shown_as_it_was_written():
    endless = f"\\[ {'x + ' * LONGEST_FORMULA} \\]"
    assert "<math" not in html_of(endless) and "x + x" in html_of(endless)
    assert "<math" not in html_of("\\[ x\n" * 300)


# --- long histories


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChatStore]:
    opened = ChatStore(tmp_path / "chats.sqlite3")
    yield opened
    opened.close()


def fill(store: ChatStore, chats: int, owner: str = "ann", text: str = "an often said word") -> None:
    """Chats of one message, each as old as its number tells; every third is pinned, every tenth tells of an okapi."""
    with store.database.transaction() as db:
        for number in range(chats):
            cursor = db.execute(
                "INSERT INTO chats (owner, title, pinned, created, updated) VALUES (?, ?, ?, 0, ?)",
                (owner, f"chat {number}", number % 3 == 0, number // 2),
            )
            db.execute(
                "INSERT INTO messages (chat_id, role, content, state, created, changed) VALUES (?, 'user', ?, 'whole', 0, 0)",
                (cursor.lastrowid, f"{text} {number}{' okapi 貘' if number % 10 == 0 else ''}"),
            )


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatStore]:
    """A history to be read, not changed."""
    opened = ChatStore(tmp_path_factory.mktemp("short") / "chats.sqlite3")
    fill(opened, MOST_HITS + 300)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatStore]:
    """The same, grown to four times its length."""
    opened = ChatStore(tmp_path_factory.mktemp("long") / "chats.sqlite3")
    fill(opened, MOST_HITS + 300)
    fill(opened, 3 * MOST_HITS)
    yield opened
    opened.close()


def pages(store: ChatStore, search: str = "", limit: int = 100) -> list[list[str]]:
    found, last = [], None
    while rows := store.for_owner("ann").chats.page(search, limit, last):
        found.append([row.title for row in rows])
        last = rows[-1].place
    return found


@pytest.mark.parametrize(("search", "count"), [("", 1050), ("okapi", 105), ("貘", 105), ("often said", 1050), ("chat 10", 61)])
def test_every_chat_is_reached_page_by_page(store: ChatStore, search: str, count: int):
    fill(store, 1050)
    fill(store, 20, owner="bob")
    titles = [title for page in pages(store, search) for title in page]
    assert len(titles) == len(set(titles)) == count
    assert titles == [row.title for row in store.for_owner("ann").chats.page(search, 5000)]
    numbers = [int(title.split()[1]) for title in titles]
    assert numbers == sorted(numbers, key=lambda number: (number % 3 == 0, number // 2, number), reverse=True)


def test_what_stands_in_most_chats_is_found_in_the_same_pages(store: ChatStore):
    fill(store, MOST_HITS + 500)
    assert sum(map(len, pages(store, "often", 1000))) == MOST_HITS + 500
    assert sum(map(len, pages(store, "ch", 1000))) == MOST_HITS + 500
    found = store.for_owner("ann").chats.page("OFTEN", 1)[0]
    assert found.found.startswith("an often said") and found.message_id is not None


@pytest.mark.parametrize("search", ["鹦", "鹦。", "猫", "É", "z"])
def test_one_letter_is_found_wherever_it_stands(store: ChatStore, search: str):
    chat = store.for_owner("ann").chats.create()
    for text in ("鹦。", "有猫", "école z"):
        store.for_owner("ann").messages.add(chat.id, None, "user", text)
    fill(store, 30, text="nothing")
    assert [row.id for row in store.for_owner("ann").chats.page(search)] == [chat.id]


@pytest.mark.parametrize(
    "search", ['"', "a AND b", "NEAR(a b)", "* OR", "col:x", "x^", "-x", "(", "%", "_", "\\", "\0", "a\0b", "'", "{a b}"]
)
def test_every_search_is_a_text_and_no_order(store: ChatStore, search: str):
    store.for_owner("ann").messages.add(store.for_owner("ann").chats.create().id, None, "user", f"before {search} after")
    fill(store, 3)
    found = store.for_owner("ann").chats.page(search)
    assert len(found) == (4 if not search.strip("\0") else 1) or search == "a\0b"


STEP = 100
"""Of SQLite's machine, in instructions."""


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.for_owner("ann").chats.page(),
        lambda store: store.for_owner("ann").chats.page(after=store.for_owner("ann").chats.page()[-1].place),
        lambda store: store.for_owner("ann").chats.page("often"),
        lambda store: store.for_owner("ann").chats.page("unicorn"),
        lambda store: store.for_owner("ann").chats.page("独角"),
        lambda store: store.for_owner("ann").chats.list_revision(),
    ],
    ids=["list", "next page", "frequent word", "no such word", "no such word of two letters", "revision"],
)
def test_the_work_for_a_page_does_not_grow_with_the_history(short: ChatStore, long: ChatStore, ask: Any):
    assert work(long, ask) <= 1.2 * work(short, ask) + 5


def test_the_work_for_a_message_does_not_grow_with_the_history(store: ChatStore):
    chat = store.for_owner("ann").chats.create()
    few = work(store, lambda store: store.for_owner("ann").messages.add(chat.id, None, "user", "hello"))
    fill(store, 3 * MOST_HITS)
    assert work(store, lambda store: store.for_owner("ann").messages.add(chat.id, None, "user", "hello")) <= 1.2 * few + 5


def work(store: ChatStore, ask: Callable[[ChatStore], Any]) -> int:
    """Of SQLite, in STEPs of its machine."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with store.database.reading() as db:
        db.set_progress_handler(count, STEP)
        ask(store)
        db.set_progress_handler(None, STEP)
    return steps


def test_the_list_tells_that_it_has_changed(store: ChatStore):
    told = [store.for_owner("ann").chats.list_revision()]
    chat = store.for_owner("ann").chats.create()
    for change in (
        lambda: store.for_owner("ann").messages.add(chat.id, None, "user", "hello"),
        lambda: store.for_owner("ann").chats.rename(chat.id, "other"),
        lambda: store.for_owner("ann").chats.pin(chat.id, True),
        lambda: store.for_owner("ann").chats.delete(chat.id),
        lambda: store.for_owner("ann").chats.restore(chat.id),
    ):
        change()
        told.append(store.for_owner("ann").chats.list_revision())
    assert len(set(told)) == len(told)
    before = store.for_owner("ann").chats.list_revision()
    store.for_owner("bob").chats.create()
    assert store.for_owner("ann").chats.list_revision() == before


def test_the_page_asks_for_the_list_in_pages(page: Page):
    fill(page.app.store, 150, owner="local")
    first = page.ok("GET", "")
    last = first[-1]
    place = f"{int(last['pinned'])},{last['updated']},{last['id']}"
    rest = page.ok("GET", f"?after={place}")
    assert len(first) == 100 and len(rest) == 50
    assert not {row["id"] for row in first} & {row["id"] for row in rest}
    assert len(page.ok("GET", "?limit=1000")) == 150
    for wrong in ("x", "1,2", "1,nan,3", "2,0,1", "1,1e5,2"):
        status, sentence = page.refused("GET", f"?after={wrong}")
        assert status == 400 and "pinned,updated,id" in sentence
    assert page.refused("GET", "?limit=100000")[0] == 400


def test_a_history_of_before_is_searched_like_a_new_one(tmp_path: Path):
    import sqlite3

    from modules.chats.schema import MIGRATIONS

    path = tmp_path / "chats.sqlite3"
    db = sqlite3.connect(path, isolation_level=None)
    for script in MIGRATIONS[:3]:
        db.executescript(script)
    db.execute("PRAGMA user_version = 3")
    db.execute("INSERT INTO chats (owner, title, created, updated) VALUES ('ann', '判决', 0, 0)")
    for state in ("whole", "streaming"):
        db.execute(
            "INSERT INTO messages (chat_id, role, content, state, created, changed) VALUES (1, 'assistant', ?, ?, 0, 0)",
            (f"图书馆 {state}", state),
        )
    db.close()
    opened = ChatStore(path)
    assert [len(opened.for_owner("ann").chats.page(search)) for search in ("图书", "判", "馆", "whole", "streaming")] == [
        1,
        1,
        1,
        1,
        1,
    ]
    reply = opened.for_owner("ann").messages.tree(1)[-1]
    opened.for_owner("ann").messages.write(reply.id, "动物园", "whole", Figures())
    assert [len(opened.for_owner("ann").chats.page(search)) for search in ("streaming", "动物", "园")] == [0, 1, 1]
    with opened.database.transaction() as db:
        db.execute("INSERT INTO message_index (message_index, rank) VALUES ('integrity-check', 1)")
        db.execute("INSERT INTO title_index (title_index, rank) VALUES ('integrity-check', 1)")
    opened.close()
