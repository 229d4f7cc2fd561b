"""How the page keeps up: first load, and long replies at 100 and 1,000 tokens a second. `python -m benchmarks.page`."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright
from rich.console import Console
from rich.table import Table

from modules.app import App
from modules.generation.types import GenerationRequest
from tests.browser.conftest import FLAGS, chromium
from tests.fakes import EchoModel, repeat_the_question
from tests.in_process import make_app, serving

# Counts what people see: the times at which the last reply changed on the screen, and tasks that held the page up. It asks
# for no frame of its own: the page draws in animation frames, and a message sent in one arrives when the frame is painted.
_WATCH = """
window.seen = []; window.longest = 0;
new PerformanceObserver((list) => { for (const task of list.getEntries()) window.longest = Math.max(window.longest, task.duration); })
  .observe({type: "longtask"});
const painted = new MessageChannel();
let length = 0;
painted.port1.onmessage = () => {
  const body = document.querySelector(".tl-last[data-role=assistant] .tl-body");
  if (body && body.textContent.length !== length) { length = body.textContent.length; window.seen.push(performance.now()); }
};
new MutationObserver(() => painted.port2.postMessage(0)).observe(document.querySelector(".tl-column"), {childList: true, characterData: true, subtree: true});
"""


def text_of(tokens: int) -> str:
    """A reply as models write them, in as many characters as the scripted model has tokens of four."""
    chance = random.Random(1)
    words = [
        "the",
        "of",
        "light",
        "sky",
        "blue",
        "it",
        "scatters",
        "because",
        "shorter",
        "waves",
        "more",
        "than",
        "red",
        "at",
        "noon",
        "and",
        "evening",
    ]
    parts: list[str] = []
    while sum(map(len, parts)) < tokens * 4:
        kind = chance.random()
        if kind < 0.15:
            parts.append("```python\ndef f(x):\n    return [x * n for n in range(10)]\n```\n\n")
        elif kind < 0.25:
            parts.append("- " + "\n- ".join(" ".join(chance.choices(words, k=6)) for _ in range(5)) + "\n\n")
        else:
            parts.append(" ".join(chance.choices(words, k=60)).capitalize() + ", **so** $x^2$.\n\n")
    return "".join(parts)[: tokens * 4]


class PacedModel(EchoModel):
    """Four characters a token, at an even pace by the clock; says when it has made the last one."""

    def __init__(self) -> None:
        super().__init__(name="paced", context_length=10_000_000)
        self.text, self.rate = "", 100.0
        self.ended: dict[str, float] = {}
        """What was asked → the time at which the last token of the answer was made."""

    def _run(self, request: GenerationRequest, prompt: Any, events: Any) -> None:
        from modules.generation.types import Finished, Started, TextDelta, Timings, Usage

        events.put(Started(len(prompt.tokens), 0))
        begun, made = time.monotonic(), 0
        pieces = [self.text[at : at + 4] for at in range(0, len(self.text), 4)]
        for piece in pieces:
            if events.closed:
                return
            made += 1
            events.put(TextDelta(piece))
            if (wait := begun + made / self.rate - time.monotonic()) > 0:
                time.sleep(wait)
        self.ended[repeat_the_question(request)] = time.time()
        events.put(Finished("stop", Usage(1, made), Timings(0, 0, time.monotonic() - begun)))
        events.end()


def measure_load(browser: Browser, url: str, times: int = 5) -> dict[str, str]:
    """`times` new visitors one after the other, each with an empty cache; the first is the server's first too."""
    usable, whole = [], []
    counts: dict[str, int] = {}
    for _ in range(times):
        page = browser.new_context().new_page()
        counts = _network(page)
        begun = time.monotonic()
        page.goto(url, wait_until="commit")
        page.wait_for_selector(".tl-welcome h1")  # the server has said which model there is, and a message can be sent
        page.locator(".tl-composer textarea").press_sequentially("hello")
        usable.append(time.monotonic() - begun)
        page.wait_for_selector("#chat-view .tl-composer")
        whole.append(time.monotonic() - begun)
        page.wait_for_timeout(1500)
        assert page.input_value(".tl-composer textarea") == "hello"
        page.context.close()
    shown = {"usable": usable, "with all tabs": whole}
    seconds = {name: f"{min(each):.2f} to {max(each):.2f} s" for name, each in shown.items()}
    return seconds | {"bytes": f"{counts['bytes'] / 1e6:.2f} MB", "requests": str(counts["requests"])}


def _network(page: Page) -> dict[str, int]:
    """Bytes as they came over the line, and requests, counted from now on."""
    counts = {"bytes": 0, "requests": 0}
    session: CDPSession = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.dataReceived", lambda event: counts.__setitem__("bytes", counts["bytes"] + event["dataLength"]))
    session.on("Network.requestWillBeSent", lambda event: counts.__setitem__("requests", counts["requests"] + 1))
    return counts


_FORMS = {
    "updates/s": "{:.0f}",
    "p95 gap": "{:.0f} ms",
    "last shown after": "{:.2f} s",
    "longest task": "{:.0f} ms",
    "bytes / text": "{:.1f}",
}
"""What a reader sees, and how it is written."""


class Reader:
    """One person who asks for a reply and watches it; to have the bytes counted takes the browser a while for each event."""

    def __init__(self, browser: Browser, url: str, chat: int | None, question: str, *, counting: bool = True) -> None:
        self.page = browser.new_context().new_page()
        self.question = question
        self.page.goto(url + (f"/?chat={chat}" if chat else ""))
        self.page.wait_for_selector(".tl-message" if chat else ".tl-welcome h1")
        self.page.wait_for_timeout(1500)
        self.page.evaluate(_WATCH)
        self.before = self.page.evaluate("document.querySelector('.tl-last')?.dataset.id ?? ''")
        self.counts = _network(self.page) if counting else None

    def ask(self) -> None:
        self.page.fill(".tl-composer textarea", self.question)
        self.page.press(".tl-composer textarea", "Enter")

    def figures(self, model: PacedModel) -> dict[str, float]:
        """What was seen, once the reply is over; closes the page."""
        self.page.wait_for_function(
            "before => { const last = document.querySelector('.tl-last[data-role=assistant][data-state=whole]');"
            " return last && last.dataset.id !== before }",
            arg=self.before,
            timeout=600_000,
            polling=250,
        )
        seen = self.page.evaluate("window.seen.map((time) => time + performance.timeOrigin)")
        longest = self.page.evaluate("window.longest")
        self.page.context.close()
        gaps = sorted(after - before for before, after in pairwise(seen))
        found = {
            "updates/s": len(seen) / ((seen[-1] - seen[0]) / 1000),
            "p95 gap": gaps[int(len(gaps) * 0.95)],
            "last shown after": seen[-1] / 1000 - model.ended[self.question],
            "longest task": longest,
        }
        return found | ({"bytes / text": self.counts["bytes"] / len(model.text.encode())} if self.counts else {})


def measure_replies(
    browser: Browser, url: str, model: PacedModel, tokens: int, rate: float, chat: int | None = None, others: int = 0
) -> dict[str, str]:
    """What one person sees; `others` ask at the same time from machines of their own, and the worst of them is told too."""
    model.text, model.rate = text_of(tokens), rate
    reader = Reader(browser, url, chat, "go")
    with ThreadPoolExecutor(max(others, 1)) as pool:
        following = [pool.submit(follow, url, f"go {number}", model) for number in range(others)]
        reader.ask()
        found = reader.figures(model)
        beside = [each.result() for each in following]
    shown = _written([found])
    if beside:
        gap, late = (max(each) for each in zip(*beside, strict=True))
        shown |= {"others' p95 gap": f"{gap:.0f} ms", "others' last event after": f"{late:.2f} s"}
    return shown


def _written(found: list[dict[str, float]]) -> dict[str, str]:
    """The worst of several readers' figures, with their units."""
    worst = {name: (min if name == "updates/s" else max)(each[name] for each in found) for name in found[0]}
    return {name: _FORMS[name].format(value) for name, value in worst.items()}


def follow(url: str, question: str, model: PacedModel) -> tuple[float, float]:
    """Ask and read the events as another machine's browser does: (p95 between events in ms, the last one's delay in seconds)."""
    with httpx.Client(base_url=url, timeout=600) as client:
        reply = client.post("/chats/send", json={"content": question}).json()["reply"]
        times = []
        topics = json.dumps({"reply": {"kind": "reply", "of": str(reply)}})
        with client.stream("GET", "/chats/events", params={"topics": topics}) as answer:
            for line in answer.iter_lines():
                if line.startswith(("data:[", 'data:{"last"', 'data:{"at"')):
                    times.append(time.time())
    gaps = sorted(after - before for before, after in pairwise(times))
    return 1000 * gaps[int(len(gaps) * 0.95)], times[-1] - model.ended[question]


def measure_pages(browser: Browser, url: str, model: PacedModel, tokens: int, rate: float, number: int) -> dict[str, str]:
    """`number` people with a page each, all drawn by the one browser of this machine: the worst of what they see."""
    model.text, model.rate = text_of(tokens), rate
    readers = [Reader(browser, url, None, f"page {each}", counting=False) for each in range(number)]
    for reader in readers:
        reader.ask()
    return _written([reader.figures(model) for reader in readers])


ROWS = ("load", "100", "1000", "long", "readers", "pages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--only", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    options = parser.parse_args()
    rows = options.only.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"--only takes some of {', '.join(ROWS)}, not {', '.join(sorted(unknown))}")
    console = Console()
    with tempfile.TemporaryDirectory() as root, sync_playwright() as playwright:
        model = PacedModel()
        app = make_app(Path(root), model, data_dir="data")
        app.store.for_owner("local").preferences.set("sampling", {"values": {"max_tokens": 100_000}, "preset": None})
        with serving(app) as url:
            browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
            if "load" in rows:
                show(console, "first load", measure_load(browser, url))
            for row, rate in (("100", 100), ("1000", 1000), ("long", 1000)):
                if row in rows:
                    chat = long_chat(app) if row == "long" else None
                    label = f"{options.tokens} tokens at {rate}/s" + (", 400 messages above" if chat else "")
                    show(console, label, measure_replies(browser, url, model, options.tokens, rate, chat))
            if "readers" in rows:
                label = f"{options.readers} readers at once, {options.tokens // 2} tokens at 100/s each"
                show(console, label, measure_replies(browser, url, model, options.tokens // 2, 100, others=options.readers - 1))
            if "pages" in rows:
                label = f"{options.readers} pages in one browser, {options.tokens // 2} tokens at 100/s each: the worst"
                show(console, label, measure_pages(browser, url, model, options.tokens // 2, 100, options.readers))
            browser.close()
        app.close()


def long_chat(app: App) -> int:
    """A chat of 400 messages."""
    chat = app.store.for_owner("local").chats.create(title="400 messages")
    parent = None
    for number in range(400):
        parent = (
            app.store.for_owner("local").messages.add(chat.id, parent, "assistant" if number % 2 else "user", text_of(60)).id
        )
    return chat.id


def show(console: Console, label: str, figures: dict[str, str]) -> None:
    table = Table(title=label)
    for name in figures:
        table.add_column(name, justify="right")
    table.add_row(*figures.values())
    console.print(table)


if __name__ == "__main__":
    main()
