"""A long history: how long the list of chats and a search take with 100,000 chats. `python -m benchmarks.history`."""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from modules.chats.records import Place
from modules.chats.store import ChatStore

BAR = 50
WORDS = (
    "the of and to in is that it for as with on are this be by from or an not can which at have you will one has but your when"
)
CHINESE = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经"
RARE = "axolotl"
RARE_CHINESE = "貔貅"


def vocabulary(chance: random.Random) -> tuple[list[str], list[float]]:
    """Words with how often each is used: the frequent ones, and 5,000 of syllables, by Zipf's law."""
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "on", "al")]
    words = [*WORDS.split(), *("".join(chance.choices(syllables, k=chance.randint(2, 4))) for _ in range(5000))]
    return words, [1 / (rank + 3) for rank in range(len(words))]


def fill(store: ChatStore, chats: int) -> None:
    """As many chats of two messages each, as natural texts have their words, a third of them Chinese; a rare word in each language stands in ten of them."""
    chance = random.Random(1)
    step = max(1, chats // 10)
    words, often = vocabulary(chance)
    with store.database.transaction() as db:
        for number in range(chats):
            chinese = number % 3 == 0
            texts = [
                "".join(chance.choices(CHINESE, k=size * 2)) if chinese else " ".join(chance.choices(words, often, k=size))
                for size in (15, 80)
            ]
            if number % step == step // 2:
                texts[1] += f" {RARE} {RARE_CHINESE}"
            title = texts[0][:60]
            cursor = db.execute(
                "INSERT INTO chats (owner, title, created, updated) VALUES ('ann', ?, ?, ?)", (title, number, number)
            )
            db.executemany(
                "INSERT INTO messages (chat_id, role, content, state, created, changed) VALUES (?, ?, ?, 'whole', 0, 0)",
                [(cursor.lastrowid, role, text) for role, text in zip(("user", "assistant"), texts, strict=True)],
            )


def asked(chats: int) -> dict[str, Callable[[ChatStore], object]]:
    """What is measured, by its name."""
    middle = Place(False, chats / 2, chats // 2)
    return {
        "list": lambda store: store.for_owner("ann").chats.page(),
        "list, a page in the middle": lambda store: store.for_owner("ann").chats.page(after=middle),
        "has the list changed?": lambda store: store.for_owner("ann").chats.list_revision(),
        "search, a rare word": lambda store: store.for_owner("ann").chats.page(RARE),
        "search, a frequent word": lambda store: store.for_owner("ann").chats.page("the"),
        "search, a frequent word, a page in the middle": lambda store: store.for_owner("ann").chats.page("the", after=middle),
        "search, a phrase of frequent words": lambda store: store.for_owner("ann").chats.page("and the of that"),
        "search, no such word": lambda store: store.for_owner("ann").chats.page("thereinfor the"),
        "search, a rare word of two letters": lambda store: store.for_owner("ann").chats.page(RARE_CHINESE),
        "search, a frequent word of two letters": lambda store: store.for_owner("ann").chats.page("是在"),
        "search, one letter": lambda store: store.for_owner("ann").chats.page("的"),
        "search, a rare letter": lambda store: store.for_owner("ann").chats.page(RARE_CHINESE[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = ChatStore(Path(folder) / "chats.sqlite3")
        fill(store, arguments.chats)
        table = Table("of the history", "ms", "worst", "bar", title=f"{arguments.chats:,} chats")
        for name, ask in asked(arguments.chats).items():
            taken = []
            for _ in range(arguments.repeats):
                begun = time.perf_counter()
                ask(store)
                taken.append(1000 * (time.perf_counter() - begun))
            table.add_row(name, f"{statistics.median(taken):.1f}", f"{max(taken):.1f}", f"{BAR}")
        store.close()
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
