"""Whether a long day changes anything: `python -m benchmarks.soak`, mixed requests by many clients to a server of its own.

The model is tiny and random, so that a day fits into minutes. Each answer is compared with what the idle server said before;
memory, threads and file descriptors of the server and of its processes are read on the way. The status is 1 where an answer is
wrong, or a bar is missed: as many threads and descriptors at the end as after the first requests, and at most 2 % more memory
than after the first fifth.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.tiny_server import tiny_server
from tests.serving import Server

PHRASES = [f"Request {number} of a long day, with its own words: {'round and ' * (number % 7)}round." for number in range(40)]
MEMORY_BAR = 1.02
CLOSE = 0.02
"""By how much a log-probability or a vector may differ in another batch."""

Answer = Any
Ask = Callable[[http.client.HTTPConnection, int], Answer]


class WrongAnswer(Exception):
    """An answer that is not the one of the idle server."""


def post(connection: http.client.HTTPConnection, path: str, body: dict[str, Any], expect: int = 200) -> Any:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    if response.status != expect:
        raise WrongAnswer(f"{path}: {response.status} instead of {expect}: {text[:300]!r}")
    return json.loads(text)


def greedy(number: int, **more: Any) -> dict[str, Any]:
    return {"temperature": 0, "max_tokens": 8 + number % 16, **more}


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": PHRASES[number % len(PHRASES)]}]


def chat(connection: http.client.HTTPConnection, number: int) -> Answer:
    reply = post(connection, "/v1/chat/completions", greedy(number, messages=messages(number)))
    return reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]


def completion(connection: http.client.HTTPConnection, number: int) -> Answer:
    reply = post(connection, "/v1/completions", greedy(number, prompt=PHRASES[number % len(PHRASES)]))
    return reply["choices"][0]["text"], reply["usage"]["completion_tokens"]


def log_probabilities(connection: http.client.HTTPConnection, number: int) -> Answer:
    body = greedy(number, messages=messages(number), logprobs=True, top_logprobs=2)
    entries = post(connection, "/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    return [(entry["token"], entry["logprob"]) for entry in entries]


def embedding(connection: http.client.HTTPConnection, number: int) -> Answer:
    return post(connection, "/v1/embeddings", {"input": PHRASES[number % len(PHRASES)]})["data"][0]["embedding"]


def stream(connection: http.client.HTTPConnection, number: int) -> Answer:
    return "".join(read_stream(connection, greedy(number, messages=messages(number), stream=True)))


def left_stream(connection: http.client.HTTPConnection, number: int) -> Answer:
    """A stream whose client goes away after the first piece of text."""
    pieces = read_stream(connection, greedy(number, messages=messages(number), stream=True) | {"max_tokens": 200})
    next((piece for piece in pieces if piece), None)
    connection.close()
    return "left"


def read_stream(connection: http.client.HTTPConnection, body: dict[str, Any]):
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise WrongAnswer(f"stream: {response.status}: {response.read()[:300]!r}")
    done = False
    for line in response:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise WrongAnswer(f"stream: {event}")
            for choice in event["choices"]:
                yield choice["delta"].get("content") or ""
        done = done or line.startswith(b"data: [DONE]")
    if not done:
        raise WrongAnswer("stream: ended without [DONE]")


def schema(connection: http.client.HTTPConnection, number: int) -> Answer:
    """A schema that nobody sent before, which leaves one answer."""
    wanted = {"id": f"soak-{number}", "kind": number % 3}
    form = {
        "type": "object",
        "properties": {key: {"const": value} for key, value in wanted.items()},
        "required": list(wanted),
        "additionalProperties": False,
    }
    asked = {"type": "json_schema", "json_schema": {"name": "soak", "schema": form}}
    body = greedy(number, messages=messages(number), response_format=asked) | {"max_tokens": 200}
    text = post(connection, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
    try:
        found = json.loads(text)
    except ValueError:
        raise WrongAnswer(f"schema: {text!r} is no JSON") from None
    if found != wanted:
        raise WrongAnswer(f"schema: {found} instead of {wanted}")
    return "as wanted"


def bad(connection: http.client.HTTPConnection, number: int) -> Answer:
    bodies: list[dict[str, Any]] = [
        {"messages": []},
        {"messages": messages(number), "temperature": "warm"},
        {"messages": messages(number), "max_tokens": -number - 2},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"messages": messages(number), "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 5}}},
    ]
    error = post(connection, "/v1/chat/completions", bodies[number % len(bodies)], expect=400)["error"]
    if not error["message"] or set(error) != {"message", "type", "param", "code"}:
        raise WrongAnswer(f"bad: {error}")
    return "refused"


KINDS: dict[str, tuple[Ask, int]] = {
    "chat": (chat, 6),
    "stream": (stream, 6),
    "stream left": (left_stream, 2),
    "completion": (completion, 4),
    "schema": (schema, 2),
    "log-probabilities": (log_probabilities, 2),
    "embedding": (embedding, 2),
    "bad": (bad, 2),
}
"""Each kind, and how many of 26 requests are of it."""
REPEATS = 80
"""A kind's requests repeat after so many: 40 phrases, and 16 lengths."""


def same(one: Answer, other: Answer) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=CLOSE)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@dataclass(frozen=True, slots=True)
class Reading:
    """What the server and its processes hold."""

    requests: int
    megabytes: float
    threads: int
    descriptors: int


def read(process: int, requests: int) -> Reading:
    root = psutil.Process(process)
    family = [root, *root.children(recursive=True)]
    return Reading(
        requests,
        sum(member.memory_info().rss for member in family) / 1e6,
        sum(member.num_threads() for member in family),
        sum(member.num_fds() for member in family),
    )


@dataclass(slots=True)
class Soak:
    """One run: who asks what next, and what came of it."""

    server: Server
    total: int
    clients: int
    expected: dict[tuple[str, int], Answer] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _next: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def learn(self) -> None:
        """What the idle server answers to every request whose answer is compared."""
        with closing(self.connect()) as connection:
            for kind in ("chat", "stream", "completion", "log-probabilities", "embedding"):
                for number in range(REPEATS):
                    self.expected[kind, number] = KINDS[kind][0](connection, number)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)

    def ask_until(self, goal: int) -> None:
        """All clients at once, until `goal` requests have been asked."""
        with ThreadPoolExecutor(self.clients) as pool:
            for client in [pool.submit(self._client, goal) for _ in range(self.clients)]:
                client.result()

    def _client(self, goal: int) -> None:
        kinds = [kind for kind, (_, weight) in KINDS.items() for _ in range(weight)]
        with closing(self.connect()) as connection:
            while (number := self._take(goal)) is not None:
                kind = random.Random(number).choice(kinds)
                try:
                    answer = KINDS[kind][0](connection, number)
                    if (kind, number % REPEATS) in self.expected and not same(answer, self.expected[kind, number % REPEATS]):
                        raise WrongAnswer(f"{answer!r} instead of {self.expected[kind, number % REPEATS]!r}")
                except (WrongAnswer, OSError, http.client.HTTPException, ValueError, KeyError) as error:
                    connection.close()
                    with self._lock:
                        self.wrong.append(f"request {number} ({kind}): {type(error).__name__}: {error}")
                with self._lock:
                    self.asked[kind] += 1

    def _take(self, goal: int) -> int | None:
        with self._lock:
            if self._next >= goal:
                return None
            self._next += 1
            return self._next - 1

    def settled(self) -> Reading:
        """A reading once no connection or reply of the clients is left."""
        assert self.server.process is not None
        before = read(self.server.process.pid, self._next)
        while True:
            time.sleep(2)
            now = read(self.server.process.pid, self._next)
            if (now.threads, now.descriptors) == (before.threads, before.descriptors):
                return now
            before = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--gguf", action="store_true", help="with llama.cpp's loader instead of our own")
    options = parser.parse_args()
    with tiny_server(["--nowebui"], gguf=options.gguf) as server:
        sys.exit(run(Soak(server, options.requests, options.clients)))


def run(soak: Soak) -> int:
    soak.learn()
    begun = time.monotonic()
    readings: list[Reading] = []
    print("| requests | MB | threads | descriptors | wrong |\n|---|---|---|---|---|")
    for step in range(1, 21):
        soak.ask_until(soak.total * step // 20)
        readings.append(soak.settled())
        now = readings[-1]
        print(f"| {now.requests} | {now.megabytes:.1f} | {now.threads} | {now.descriptors} | {len(soak.wrong)} |", flush=True)
    first, last = readings[3], readings[-1]
    seconds = time.monotonic() - begun
    print(f"\n{sum(soak.asked.values())} answers, {len(soak.wrong)} wrong, {seconds:.0f} s: {dict(soak.asked)}")
    for line in soak.wrong[:20]:
        print(line)
    growth = last.megabytes / first.megabytes
    held = last.threads <= max(reading.threads for reading in readings[:4]) and last.descriptors <= readings[0].descriptors
    print(
        f"memory after the first fifth: {growth:.4f} × (bar {MEMORY_BAR}); threads and descriptors no more than at first: {held}"
    )
    return int(bool(soak.wrong) or growth > MEMORY_BAR or not held)


if __name__ == "__main__":
    main()
