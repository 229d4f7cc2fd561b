"""How long a start takes until /health answers 200: `python -m benchmarks.start`."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.serving import ROOT, Server

STARTER = "SmolLM2-135M-Instruct.Q4_1"
CASES = {
    "no model": (["--model-dir", "{empty}"], 6.0),
    "no model, API alone": (["--model-dir", "{empty}", "--nowebui"], None),
    "starter GGUF": (["--model", STARTER], 10.0),
}


def seconds_to_help() -> float:
    begun = time.monotonic()
    subprocess.run([sys.executable, "server.py", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - begun


def seconds_to_gradio() -> float:
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import gradio"], cwd=ROOT, check=True)
    return time.monotonic() - begun


def seconds_to_ready(arguments: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = [word.format(empty=Path(folder) / "models") for word in arguments]
        with Server(words, data=Path(folder) / "data") as server:
            return server.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    rows: dict[str, list[float]] = {name: [] for name in ("--help", "import gradio alone", *CASES)}
    for _ in range(repeats):
        rows["--help"].append(seconds_to_help())
        rows["import gradio alone"].append(seconds_to_gradio())
        for name, (arguments, _bar) in CASES.items():
            rows[name].append(seconds_to_ready(arguments))
    print(f"\n| start | seconds (median of {repeats}) | bar |\n|---|---|---|")
    for name, seconds in rows.items():
        bar = CASES[name][1] if name in CASES else None
        print(f"| {name} | {statistics.median(seconds):.1f} | {f'under {bar:g}' if bar else ''} |")


if __name__ == "__main__":
    main()
