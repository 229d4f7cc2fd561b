"""What it costs that a message is on the disk when it was taken: milliseconds for each. `python -m benchmarks.messages`."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from modules.chats.records import Figures
from modules.chats.store import ChatStore

TEXT = "A message as people write them, of a few lines. " * 10
LIMIT = 5.0
"""Milliseconds of a message, by the median."""


def measure(folder: Path, synchronous: str, rounds: int) -> tuple[list[float], list[float]]:
    """(milliseconds to take a message, and to keep a reply that grew) in a chat history of its own."""
    store = ChatStore(folder / f"{synchronous}.sqlite3")
    with store.database.reading() as db:
        db.execute(f"PRAGMA synchronous = {synchronous}")
    taken, kept = [], []
    chat, parent = store.for_owner("local").chats.create(), None
    for number in range(rounds):
        if number % 20 == 19:
            chat, parent = store.for_owner("local").chats.create(), None
        begun = time.perf_counter()
        said = store.for_owner("local").messages.add(chat.id, parent, "user", TEXT)
        taken.append(time.perf_counter() - begun)
        reply = store.for_owner("local").messages.add(chat.id, said.id, "assistant", "", state="streaming")
        begun = time.perf_counter()
        store.for_owner("local").messages.write(reply.id, TEXT * (1 + number % 5), "streaming", Figures())
        kept.append(time.perf_counter() - begun)
        store.for_owner("local").messages.write(reply.id, TEXT * 5, "whole", Figures())
        parent = reply.id
    store.close()
    return [1000 * seconds for seconds in taken], [1000 * seconds for seconds in kept]


def disk_alone(folder: Path, rounds: int) -> list[float]:
    """Milliseconds to put 16 KiB on the disk, in a file that is long enough already."""
    times = []
    with (folder / "plain").open("wb+", buffering=0) as file:
        file.write(bytes(16384 * 64))
        os.fsync(file.fileno())
        for number in range(rounds):
            file.seek(16384 * (number % 64))
            begun = time.perf_counter()
            file.write(b"x" * 16384)
            os.fdatasync(file.fileno())
            times.append(1000 * (time.perf_counter() - begun))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; left out, the system's for temporary files")
    arguments = parser.parse_args()
    table = Table("synchronous", "a message, median", "99 of 100", "a growing reply, median", "99 of 100")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        medians = {}
        for synchronous in ("NORMAL", "FULL"):
            taken, kept = measure(Path(folder), synchronous, arguments.rounds)
            medians[synchronous] = statistics.median(taken)
            figures = (
                part for times in (taken, kept) for part in (statistics.median(times), statistics.quantiles(times, n=100)[98])
            )
            table.add_row(synchronous, *(f"{figure:.2f} ms" for figure in figures))
        alone = statistics.median(disk_alone(Path(folder), arguments.rounds))
    console = Console()
    console.print(table)
    console.print(
        f"The disk alone takes {alone:.2f} ms for 16 KiB; FULL less NORMAL is {medians['FULL'] - medians['NORMAL']:.2f} ms."
    )
    console.print(f"Limit for a message: {LIMIT} ms.")
    if medians["FULL"] > LIMIT:
        raise SystemExit("A message takes longer than it may.")


if __name__ == "__main__":
    main()
