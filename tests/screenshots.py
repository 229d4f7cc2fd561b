"""Pictures of every tab, light and dark, wide and on a phone: `python -m tests.screenshots FOLDER`. To be looked at."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import FLAGS, chromium
from tests.fakes import EchoModel
from tests.in_process import make_app, serving

SIZES = {"wide": (1280, 800), "phone": (390, 844)}
TABS = ("chat", "default", "notebook", "parameters", "models", "training", "session")
REPLY = """<think>
They want primes. A sieve is short and fast.
</think>

This finds all primes below a limit with the *sieve of Eratosthenes*:

```python
def primes(limit: int) -> list[int]:
    \"\"\"All primes below `limit`.\"\"\"
    sieve = [True] * limit  # every number may be prime
    for n in range(2, int(limit ** 0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = [False] * len(range(n * n, limit, n))
    return [n for n in range(2, limit) if sieve[n]]
```

It takes $O(n \\log \\log n)$ steps:

| step | what happens | cost |
|------|--------------|-----:|
| 1 | make the table | $n$ |
| 2 | strike out multiples | $n \\log \\log n$ |
"""

POEM = """The moon is a lamp that nobody lit,
and all the wide water remembers it.
"""


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root, sync_playwright() as playwright:
        model = EchoModel(lambda request: REPLY, name="SmolLM2-135M-Instruct", pace=0.001)
        app = make_app(Path(root), model)
        app.store.for_owner("local").preferences.set("sampling", {"values": {"max_tokens": 2000}, "preset": None})
        app.store.for_owner("local").preferences.set("sheet.default", {"prompt": app.prompts.read("Alpaca"), "text": POEM})
        app.store.for_owner("local").preferences.set("sheet.notebook", {"text": app.prompts.read("QA") + POEM})
        with serving(app) as url:
            browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
            address = _conversation(browser, url)
            for size, (width, height) in SIZES.items():
                for scheme in ("light", "dark"):
                    context = browser.new_context(
                        viewport={"width": width, "height": height},
                        color_scheme=scheme,
                        locale="zh-CN" if size == "phone" else "en-US",
                    )
                    page = context.new_page()
                    page.goto(address)
                    page.wait_for_selector(".tl-message .tl-code")
                    for tab in TABS:
                        _open(page, tab)
                        page.screenshot(path=folder / f"{tab}-{size}-{scheme}.png")
                    context.close()
            browser.close()
        app.close()


def _conversation(browser: Browser, url: str) -> str:
    """The address of a chat with something in it."""
    page = browser.new_page()
    page.goto(url)
    page.fill(".tl-composer textarea", "Write a Python function that finds prime numbers, and say what it costs.")
    page.press(".tl-composer textarea", "Enter")
    page.wait_for_selector(".tl-message[data-role=assistant][data-state=whole]", timeout=60_000)
    address = page.url
    page.close()
    return address


def _open(page: Page, tab: str) -> None:
    page.evaluate(f"TEXTLOOM.openTab('{tab}')")
    page.wait_for_timeout(2500)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("screenshots"), help="where the pictures go")
    main(parser.parse_args().folder)
