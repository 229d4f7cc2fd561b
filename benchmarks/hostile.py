"""What streaming clients notice of attacks: `python -m benchmarks.hostile`, each attack beside clients that stream.

The model is tiny and random, so that the clients leave the server time for the attack. The gap between two pieces of a stream is
taken at each client; its 95th percentile while an attack is sent is divided by that of the quiet seconds before and after. The
status is 1 where a ratio exceeds the bar, a stream broke, or the server answered an attack with a status of 500 or more.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import socket
import statistics
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.tiny_server import tiny_server

BAR = 3.0
CHAT = "/v1/chat/completions"
FOREIGN = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
JSON = {"Content-Type": "application/json"}
USER, PASSWORD = "user", "the right one"
LARGE = 50_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what a user who has logged in sends along."""

    port: int
    headers: Mapping[str, str]

    @staticmethod
    def logged_in(port: int) -> Target:
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", "/login", f"user={USER}&password={PASSWORD}", form)
            cookie = connection.getresponse().headers["Set-Cookie"].partition(";")[0]
        return Target(port, {"Authorization": f"Bearer {USER}:{PASSWORD}", "Cookie": cookie, **JSON})


Attack = Callable[[Target], int]
"""Sends the attack once; the status of its answer, 0 where the server closed the connection without one."""


def send(target: Target, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", target.port, timeout=90)) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # a server that has seen enough answers before all is sent
            connection.request(method, path, body, {**target.headers, **(headers or {})})
        try:
            response = connection.getresponse()
            response.read()
        except (http.client.HTTPException, ConnectionError):
            return 0
        return response.status


def from_a_page(target: Target) -> Target:
    """As a browser sends what another site's page asks for: with the cookie alone."""
    return Target(target.port, {"Cookie": target.headers["Cookie"]})


def ask(target: Target, **more: Any) -> int:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 16} | more
    return send(target, "POST", CHAT, json.dumps(body).encode())


def with_schema(schema: object) -> Attack:
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return lambda target: ask(target, response_format=asked)


def doubling(times: int) -> object:
    schema: object = {"type": "string"}
    for _ in range(times):
        schema = {"anyOf": [schema, {"type": "array", "items": schema}]}
    return schema


def with_template(template: str) -> Attack:
    return lambda target: ask(target, template=template)


def guesses(target: Target) -> int:
    """A hundred wrong passwords for a user who is at work."""
    stranger = Target(target.port, {})
    return max(send(stranger, "GET", "/v1/models", headers={"Authorization": f"Bearer {USER}:{n}"}) for n in range(100))


def half_sent(target: Target) -> int:
    """Fifty requests whose bodies never come."""
    connections = [socket.create_connection(("127.0.0.1", target.port)) for _ in range(50)]
    for connection in connections:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{{".encode())
    time.sleep(2)
    for connection in connections:
        connection.close()
    return 0


def packed_nothing() -> bytes:
    """A small zip whose one member unpacks to half a gigabyte."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("chats.json", "w") as member:
        for _ in range(500):
            member.write(b" " * 1_000_000)
    return file.getvalue()


def attacks() -> dict[str, Attack]:
    character = b"name: x\ncontext: |\n" + b"".join(b"  line %d\n" % number for number in range(400_000))
    zipped = packed_nothing()
    many = [{"role": "user", "content": "x"}] * 100_000
    return {
        "schema: an array of 10⁹ nulls": with_schema({"type": "array", "items": {"type": "null"}, "minItems": 10**9}),
        "schema: anyOf doubled 12 times": with_schema(doubling(12)),
        "pattern: (a{1,1000}){1,1000}": lambda target: ask(target, regex="((a{1,1000}){1,1000}){1,1000}"),
        "grammar that never ends": lambda target: ask(target, grammar='root ::= "x" root'),
        "template: nested loops": with_template(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        ),
        "template: 'a' * 10⁹": with_template("{{ 'a' * 10**9 }}"),
        "another site's form": lambda target: send(from_a_page(target), "POST", "/v1/internal/model/unload", headers=FOREIGN),
        "guessed passwords": guesses,
        "a file from another site": lambda target: send(
            from_a_page(target), "POST", "/gradio_api/upload", b"x" * 1_000_000, FOREIGN
        ),
        "character of 5 MB": lambda target: send(target, "POST", "/chats/characters/import?file=x.yaml", character),
        "zip of 500 MB of spaces": lambda target: send(target, "POST", "/chats/everything", zipped),
        "100,000 messages": lambda target: ask(target, messages=many),
        "half-sent requests": half_sent,
        "body of 50 MB": lambda target: send(target, "POST", CHAT, b'{"x": "' + b"x" * LARGE + b'"}'),
        "name of 300 letters": lambda target: send(target, "GET", "/chats/characters/" + "x" * 300),
        "NUL in a name": lambda target: send(target, "GET", "/chats/characters/%00"),
    }


@dataclass(slots=True)
class Streams:
    """Clients that stream without a pause, and the gaps between what they get."""

    target: Target
    count: int
    broken: list[str] = field(default_factory=list)
    _gaps: list[float] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Streams:
        self._threads = [threading.Thread(target=self._client, args=(number,), daemon=True) for number in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def take(self) -> list[float]:
        """The gaps since the last call, in seconds."""
        with self._lock:
            gaps, self._gaps = self._gaps, []
        return gaps

    def _client(self, number: int) -> None:
        body = {
            "messages": [{"role": "user", "content": f"client {number}"}],
            "max_tokens": 1000,
            "ban_eos": True,
            "stream": True,
        }
        while not self._ended.is_set():
            try:
                self._read(json.dumps(body).encode())
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.broken.append(f"{type(error).__name__}: {error}")
                time.sleep(0.5)

    def _read(self, body: bytes) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self.target.port, timeout=120)) as connection:
            connection.request("POST", CHAT, body, dict(self.target.headers))
            response = connection.getresponse()
            if response.status != 200:
                raise ValueError(f"{response.status}: {response.read()[:200]!r}")
            last: float | None = None
            for line in response:
                if self._ended.is_set():
                    return
                if not line.startswith(b"data: "):
                    continue
                if b'"error"' in line[:20]:
                    raise ValueError(line.decode()[:300])
                if line.startswith(b"data: [DONE]"):
                    return
                now = time.perf_counter()
                if last is not None:
                    with self._lock:
                        self._gaps.append(now - last)
                last = now
            raise ValueError("a stream ended without [DONE]")


def p95(gaps: list[float]) -> float:
    return statistics.quantiles(gaps, n=20)[-1] if len(gaps) > 1 else float("inf")


def quiet(streams: Streams, seconds: float) -> float:
    """The 95th percentile of the gaps while nothing is attacked, in seconds."""
    streams.take()
    time.sleep(seconds)
    return p95(streams.take())


def attacked(streams: Streams, attack: Attack, seconds: float) -> tuple[float, int, float]:
    """The 95th percentile of the gaps while an attack is sent again and again, its worst status, and its slowest answer in seconds."""
    streams.take()
    begun = time.monotonic()
    worst, slowest = 0, 0.0
    while time.monotonic() - begun < seconds:
        sent = time.monotonic()
        worst = max(worst, attack(streams.target))
        slowest = max(slowest, time.monotonic() - sent)
        time.sleep(0.2)
    return p95(streams.take()), worst, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4, help="of each attack, and of the quiet beside it")
    parser.add_argument("--gguf", action="store_true", help="with llama.cpp's loader instead of our own")
    options = parser.parse_args()
    arguments = ["--max-parallel", str(options.clients + 2), "--gradio-auth", f"{USER}:{PASSWORD}"]
    with tiny_server(arguments, gguf=options.gguf) as server:
        with Streams(Target.logged_in(server.port), options.clients) as streams:
            quiet(streams, 5)
            sys.exit(run(streams, options.seconds))


def run(streams: Streams, seconds: float) -> int:
    print("| attack | status | slowest answer, s | p95 gap quiet, ms | attacked, ms | ratio |\n|---|---|---|---|---|---|")
    failed = False
    before = quiet(streams, seconds)
    for name, attack in attacks().items():
        during, status, slowest = attacked(streams, attack, seconds)
        after = quiet(streams, seconds)
        calm = (before + after) / 2
        ratio = during / calm
        failed = failed or ratio > BAR or status >= 500
        figures = f"{calm * 1e3:.1f} | {during * 1e3:.1f} | {ratio:.2f}"
        print(f"| {name} | {status or 'closed'} | {slowest:.2f} | {figures} |", flush=True)
        before = after
    print(f"\nbroken streams: {len(streams.broken)} {streams.broken[:3]}; bar: {BAR:g} × undisturbed")
    return int(failed or bool(streams.broken))


if __name__ == "__main__":
    main()
