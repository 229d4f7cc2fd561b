"""Many chats from one file: how long they take, and how long others wait meanwhile. `python -m benchmarks.imports`.

Another user's chat is read and written to all the time; how long each takes while the chats come in stands beside how long it
takes when nothing does. The status is 1 where the chats take longer than the bar.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.history import vocabulary
from modules.chats.incoming import read_file
from modules.chats.store import ChatStore
from modules.chats.transfer import import_chats

BAR = 5.0
"""Seconds that 1,000 chats may take."""


def exported(chats: int, messages: int) -> bytes:
    """As many chats as ChatGPT exports them, each with so many messages of about 80 words."""
    chance = random.Random(1)
    words, often = vocabulary(chance)
    made = []
    for number in range(chats):
        nodes = {"root": {"message": None, "parent": None, "children": ["0"]}}
        for at in range(messages):
            text = " ".join(chance.choices(words, often, k=chance.randint(20, 140)))
            message = {
                "author": {"role": ("user", "assistant")[at % 2]},
                "create_time": 1.7e9 + number * 100 + at,
                "content": {"content_type": "text", "parts": [text]},
            }
            nodes[str(at)] = {"message": message, "parent": str(at - 1) if at else "root", "children": [str(at + 1)]}
        made.append({"title": f"Chat {number}", "mapping": nodes, "current_node": str(messages - 1)})
    return json.dumps(made).encode()


class Other(threading.Thread):
    """Somebody who reads and writes a chat all the time; `waits`: the seconds of each, `gaps`: how late a pause of 5 ms ended."""

    def __init__(self, store: ChatStore) -> None:
        super().__init__(daemon=True)
        self.waits: list[float] = []
        self.gaps: list[float] = []
        self._store = store
        self._over = threading.Event()

    def run(self) -> None:
        chat = self._store.for_owner("bob").chats.create()
        last = None
        while not self._over.is_set():
            begun = time.monotonic()
            last = self._store.for_owner("bob").messages.add(chat.id, last, "user", "A line of a chat.").id
            self._store.for_owner("bob").chats.page()
            self.waits.append(time.monotonic() - begun)
            begun = time.monotonic()
            time.sleep(0.005)
            self.gaps.append(time.monotonic() - begun - 0.005)

    def end(self) -> None:
        self._over.set()
        self.join()


def row(name: str, other: Other) -> list[str]:
    def told(times: list[float]) -> list[str]:
        cuts = statistics.quantiles(times, n=20)
        return [f"{1000 * value:.0f}" for value in (statistics.median(times), cuts[-1], max(times))]

    return [name, *told(other.waits), *told(other.gaps)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=1000)
    parser.add_argument("--messages", type=int, default=10, help="of each chat")
    options = parser.parse_args()
    data = exported(options.chats, options.messages)
    with tempfile.TemporaryDirectory() as folder:
        store = ChatStore(Path(folder) / "chats.sqlite3")
        table = Table("others, in ms", "store: median", "95 %", "longest", "thread: median", "95 %", "longest")
        quiet = Other(store)
        quiet.start()
        time.sleep(2)
        quiet.end()
        busy = Other(store)
        busy.start()
        begun, worked = time.monotonic(), time.thread_time()
        incoming = read_file(data)
        read = time.monotonic() - begun
        made = import_chats(store.for_owner("ann"), incoming.chats)
        took, worked = time.monotonic() - begun, time.thread_time() - worked
        busy.end()
        store.close()
    table.add_row(*row("quiet", quiet))
    table.add_row(*row("while chats come in", busy))
    console = Console()
    console.print(table)
    console.print(
        f"{len(made)} chats of {options.messages} messages, {len(data) / 1e6:.1f} MB: {took:.2f} s, {read:.2f} s of them reading the "
        f"file; {worked:.2f} s of a processor"
    )
    sys.exit(took > BAR * max(1, options.chats / 1000) or len(made) != options.chats)


if __name__ == "__main__":
    main()
