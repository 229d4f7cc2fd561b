"""A server of ours in its own process, for tests that need the real thing: on a free port, with its own data, ended with the test."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from tests.harness import evidence
from tests.leash import leashed

ROOT = Path(__file__).resolve().parent.parent


SCRIPTED = """
import sys
import server
from modules.app import App
from tests.fakes import EchoModel

model = EchoModel(lambda request: "word " * 100, name="tiny", pace=0.002)
App.load_at_start = lambda app: app.manager.replace("tiny", lambda report: model)
sys.exit(server.main(sys.argv[1:]))
"""
"""server.py with a model that says the same always (`--model tiny`), for what needs a process but no weights."""


def free_port() -> int:
    """A port that nobody listens on, outside the range from which outgoing connections take theirs meanwhile.

    For programs that cannot be told to take any. Drawn by the system: `random` gives every worker the same numbers.
    """
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class Server:
    """`with Server(["--model", …], data=tmp_path) as server:`; server.url answers then. `lines` is what it printed.

    port: 0 for any, which the system chooses at the first start and which a further start takes again.
    program: what Python runs in place of server.py, which ends in server.main.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        data: Path,
        port: int = 0,
        environment: dict[str, str] | None = None,
        program: Sequence[str] = (str(ROOT / "server.py"),),
    ) -> None:
        self.port = port
        self.lines: list[str] = []
        self.seconds = 0.0
        self._program = [sys.executable, *program]
        self._arguments = ["--data-dir", str(data), "--settings", os.devnull, *arguments]
        self._environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, timeout: float = 120) -> None:
        """Start it and wait for the READY line. Fails with its output where it ends before."""
        begun = time.monotonic()
        self.lines.clear()
        command = leashed([*self._program, "--listen-port", str(self.port), *self._arguments])
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        evidence.keep(self._keep_output)
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self.process, ready), daemon=True)
        self._reader.start()
        while not ready.wait(0.02):
            if self.process.poll() is not None or time.monotonic() - begun > timeout:
                self.kill()
                raise AssertionError("the server did not become ready:\n" + "".join(self.lines))
        self.seconds = time.monotonic() - begun

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.append(line)
                if said := re.match(r"READY local=https?://[^/]+:(\d+)", line):
                    self.port = int(said[1])
                    ready.set()

    def _keep_output(self, folder: Path) -> None:
        (folder / f"server-{self.port}.txt").write_text("".join(self.lines), encoding="utf-8", errors="replace")

    def stop(self) -> int:
        """End it as Ctrl-C would; its exit status. Kills it where that takes more than 30 s."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(timeout=30)
            self._reader.join(timeout=5)
            return status
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError("the server did not end:\n" + "".join(self.lines)) from None

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=5)

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]
