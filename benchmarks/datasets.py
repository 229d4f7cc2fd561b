"""Show data: how long its first answer and the count of all rows take. `python -m benchmarks.datasets [--rows N] [--model FOLDER]`."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from modules.training.config import TrainingConfig
from modules.training.dataset import Places
from modules.training.preview import count_all, first_rows
from modules.training.samples import load_tokenizer
from tests.tiny import write_tiny_llama

BAR = 2.0
ROOT = Path(__file__).resolve().parent.parent
WORDS = "lorem ipsum dolor sit amet "


def write(folder: Path, rows: int) -> dict[str, str]:
    """The data sets, by what they are."""
    many = [{"instruction": f"Say the number {number} in words.", "output": WORDS * 12} for number in range(rows)]
    long = {"instruction": "Go on.", "output": WORDS * 200_000}
    files = {
        f"{rows} rows, JSON": ("many.json", json.dumps(many)),
        f"{rows} rows, JSONL": ("many.jsonl", "\n".join(map(json.dumps, many))),
        f"{rows} rows, CSV": ("many.csv", "question,answer\n" + "".join(f"{number},{WORDS * 12}\n" for number in range(rows))),
        "a row of 5 MB, JSON": ("long.json", json.dumps([long])),
        "a row of 5 MB, CSV": ("long.csv", f"question,answer\nGo on.,{long['output']}\n"),
        "a text of 5 MB": ("long.txt", long["output"]),
    }
    for name, text in files.values():
        (folder / name).write_text(text)
    return {what: name for what, (name, _) in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--model", type=Path, help="a folder with a tokenizer; a tiny one is made otherwise")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = given.model or write_tiny_llama(folder / "model")
        (folder / "data").mkdir()
        places = Places(folder / "data", ROOT / "training" / "formats", ROOT / "prompts" / "templates")
        load_tokenizer(model)  # imports, which the server has behind it when a model is loaded
        table = Table("data set", "first answer (s)", f"within {BAR:g} s", "all counted, beside the server (s)", "rows", "good")
        for what, name in write(folder / "data", given.rows).items():
            config = TrainingConfig(dataset=name)
            started = time.perf_counter()
            first_rows(config, places, load_tokenizer(model), "model")
            first = time.perf_counter() - started
            started = time.perf_counter()
            with count_all(config, places, model, "model") as counting:
                while (known := counting.wait(1)) is None:
                    pass
            counted = time.perf_counter() - started
            table.add_row(
                what, f"{first:.2f}", "yes" if first <= BAR else "NO", f"{counted:.1f}", str(known.rows), str(known.good)
            )
        Console().print(table)


if __name__ == "__main__":
    main()
