"""What our layers cost: tokens/s of bare xllamacpp and bare transformers, of our models, and of /v1 streaming.

`python -m benchmarks.serve`: the same prompt, greedy, the contestants in turn, medians of several rounds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, LoadedModel, TextDelta
from modules.library.models import describe
from modules.loaders.choose import load
from modules.loaders.options import LoadOptions
from tests.serving import ROOT, Server

PROMPT = "The history of the lighthouse began when people who lived along the coast lit fires on the hills."
GGUF, FOLDER = "SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"
CONTEXT = 2048

Contestant = Callable[[int], float]
"""Makes so many tokens and returns tokens/s after the first."""


class Stopwatch:
    """The first and the last token of a reply."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def tick(self) -> None:
        self._times.append(time.perf_counter())

    def tokens_per_second(self, tokens: int) -> float:
        return (tokens - 1) / (self._times[-1] - self._times[0])


def bare_xllamacpp(path: Path, threads: int) -> Contestant:
    xllamacpp: Any = import_module("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.verbosity, parameters.ui = str(path), CONTEXT, 0, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)

    def run(tokens: int) -> float:
        watch = Stopwatch()

        def read(chunk: dict[str, Any]) -> None:
            if chunk["choices"] and chunk["choices"][0]["text"]:
                watch.tick()

        fields = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        server.handle_completions(fields, read)
        return watch.tokens_per_second(tokens)

    return run


def our_model(path: Path, threads: int, stack: ExitStack) -> Contestant:
    model: LoadedModel = load(describe(path), LoadOptions(ctx_size=CONTEXT, threads=threads), lambda progress: None)
    stack.callback(model.close)

    def run(tokens: int) -> float:
        watch = Stopwatch()
        sampling = SamplingParams(max_tokens=tokens, do_sample=False, ban_eos=True)
        for event in model.stream(GenerationRequest(PROMPT, sampling)):
            if isinstance(event, TextDelta) and event.text:
                watch.tick()
        return watch.tokens_per_second(tokens)

    return run


def our_api(name: str, threads: int, stack: ExitStack) -> Contestant:
    data = stack.enter_context(tempfile.TemporaryDirectory())
    arguments = ["--model", name, "--ctx-size", str(CONTEXT), "--threads", str(threads), "--nowebui"]
    server = stack.enter_context(Server(arguments, data=Path(data)))

    def run(tokens: int) -> float:
        watch = Stopwatch()
        asked = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ban_eos": True, "stream": True}
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            for line in response:
                if line.startswith(b"data: {"):
                    watch.tick()
        return watch.tokens_per_second(tokens)

    return run


def bare_transformers(path: Path, threads: int) -> Contestant:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompt = tokenizer(PROMPT, return_tensors="pt")

    def run(tokens: int) -> float:
        watch = Stopwatch()
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        arguments = {**prompt, "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "streamer": streamer}
        thread = threading.Thread(target=model.generate, kwargs=arguments)
        thread.start()
        for _ in streamer:
            watch.tick()
        thread.join()
        return watch.tokens_per_second(tokens)

    return run


def race(contestants: dict[str, Contestant], rounds: int, tokens: int) -> dict[str, list[float]]:
    """tokens/s of each in every round; the first round warms up and is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            speed = run(tokens)
            if number:
                speeds[name].append(speed)
    return speeds


def show(title: str, speeds: dict[str, list[float]], bars: dict[str, float]) -> None:
    names = list(speeds)
    print(f"\n| {title} | tokens/s | of {names[0]} | bar |\n|---|---|---|---|")
    for name in names:
        # Ratios of the same round: what disturbs the machine disturbs neighbours alike.
        ratio = statistics.median(ours / bare for ours, bare in zip(speeds[name], speeds[names[0]], strict=True))
        bar = f"≥ {bars[name]:g}" if name in bars else ""
        print(f"| {name} | {statistics.median(speeds[name]):.1f} | {ratio:.3f} | {bar} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="all cores unless told otherwise")
    parser.add_argument("--only", choices=["llamacpp", "transformers"])
    asked = parser.parse_args()
    models = ROOT / "models"
    if asked.only != "transformers":
        with ExitStack() as stack:
            path = models / f"{GGUF}.gguf"
            contestants = {
                "bare xllamacpp": bare_xllamacpp(path, asked.threads),
                "our model": our_model(path, asked.threads, stack),
                "/v1 streaming": our_api(GGUF, asked.threads, stack),
            }
            show("GGUF", race(contestants, asked.rounds, asked.tokens), {"our model": 0.97, "/v1 streaming": 0.95})
    if asked.only != "llamacpp":
        with ExitStack() as stack:
            path = models / FOLDER
            contestants = {
                "bare transformers": bare_transformers(path, asked.threads),
                "our model": our_model(path, asked.threads, stack),
                "/v1 streaming": our_api(FOLDER, asked.threads, stack),
            }
            show("transformers", race(contestants, asked.rounds, asked.tokens), {"our model": 1.0})


if __name__ == "__main__":
    main()
