"""A local folder through `vllm serve`: over several GPUs, and with Ray over several machines."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from modules.errors import UserError
from modules.library.model_spec import ModelSpec
from modules.loaders.options import LoadOptions

if TYPE_CHECKING:
    from modules.generation.remote.model import RemoteModel
    from modules.loaders.choose import Report

log = logging.getLogger(__name__)

COMMAND = "TEXTLOOM_VLLM"
"""Environment variable: the command that is `vllm`, where it is installed apart from us."""
SECONDS_TO_START = 3600
SECONDS_TO_END = 20
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks without a proxy: vLLM runs on this machine."""
SECONDS_TO_DIE = 5
"""What its server may need to end after the process that computes has died."""
LINES_KEPT = 400
"""Of its log: the traceback of the first failure stands before those that follow from it."""


def why_not(spec: ModelSpec, options: LoadOptions) -> str | None:
    if spec.format == "remote":
        return f"{spec.name} runs on another engine already: choose the loader remote, or auto."
    if command() is None:
        return f"vLLM is not installed. Install it with `pip install vllm`, or set {COMMAND} to its command, then try again."
    return None


def load(spec: ModelSpec, options: LoadOptions, report: Report) -> RemoteModel:
    from modules.generation.remote.client import Client
    from modules.generation.remote.model import RemoteFacts, RemoteModel

    vllm = command()
    assert vllm is not None
    port = _free_port()
    server = VllmServer([*vllm, *arguments(spec, options, port)], port, report)
    try:
        server.wait_until_ready()
        client = Client(f"http://127.0.0.1:{port}/v1", "")
        facts = RemoteFacts.ask(client, spec.name)
        return RemoteModel(
            spec.name,
            client,
            facts,
            max_parallel=options.max_parallel,
            on_close=server.close,
            why_gone=server.why_gone,
        )
    except BaseException:
        server.close()
        raise


def command() -> list[str] | None:
    """How vLLM is started here: as TEXTLOOM_VLLM says, as `vllm` on the path, or from our own packages."""
    if named := os.environ.get(COMMAND):
        return shlex.split(named)
    if found := shutil.which("vllm"):
        return [found]
    if importlib.util.find_spec("vllm"):
        return [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    return None


def arguments(spec: ModelSpec, options: LoadOptions, port: int) -> list[str]:
    """What `vllm serve` is told."""
    dtype = "bfloat16" if options.bf16 else options.dtype
    told = ["serve", str(spec.path), "--served-model-name", spec.name, "--host", "127.0.0.1", "--port", str(port)]
    told += ["--max-num-seqs", str(options.max_parallel), "--dtype", dtype]
    told += ["--tensor-parallel-size", str(options.tensor_parallel_size)]
    told += ["--pipeline-parallel-size", str(options.pipeline_parallel_size)]
    if options.ctx_size:
        told += ["--max-model-len", str(options.ctx_size)]
    if options.distributed_executor_backend != "auto":
        told += ["--distributed-executor-backend", options.distributed_executor_backend]
    if options.trust_remote_code:
        told.append("--trust-remote-code")
    try:
        return told + shlex.split(options.vllm_args)
    except ValueError as error:
        raise UserError(f"vllm_args cannot be read: {error}.", param="vllm_args") from None


class VllmServer:
    """`vllm serve` and the processes that it starts, which are one group and end together."""

    def __init__(self, words: list[str], port: int, report: Report) -> None:
        self._health = f"http://127.0.0.1:{port}/health"
        self._report = report
        self._ready = False
        self._last_words: deque[str] = deque(maxlen=LINES_KEPT)
        log.info("starting %s", shlex.join(words))
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(f"vLLM cannot be started: {words[0]}: {error.strerror}.") from error
        output: IO[str] | None = self._process.stdout
        assert output is not None
        self._output = output
        self._reader = threading.Thread(target=self._read, daemon=True, name="vLLM log")
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        for line in self._output:
            words = line.strip()
            if words:
                self._last_words.append(words)
                log.debug("%s", words)
                if not self._ready:
                    self._report(words)

    def wait_until_ready(self, seconds: float = SECONDS_TO_START) -> None:
        """Raises UserError with the last words of vLLM where it ends instead."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._process.poll() is not None:
                self._reader.join(SECONDS_TO_END)
                raise UserError(f"vLLM ended before it was ready: {root_cause(list(self._last_words))}")
            try:
                with _DIRECT.open(self._health, timeout=5):
                    self._ready = True
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise UserError(f"vLLM was not ready after {seconds:.0f} seconds: {root_cause(list(self._last_words))}")

    def why_gone(self) -> str:
        """What it died of, for when it does not answer any more."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_DIE)
            self._reader.join(SECONDS_TO_END)
        return f"vLLM has died: {root_cause(list(self._last_words)).rstrip('.')}."

    def close(self) -> None:
        """End the whole group. Idempotent."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, sign)
            except ProcessLookupError:
                break
            if self._gone(SECONDS_TO_END):
                break
        self._process.wait()
        self._reader.join(SECONDS_TO_END)
        self._output.close()

    def _gone(self, seconds: float) -> bool:
        """Whether no process of the group is left, after waiting for it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._process.poll()
            try:
                os.killpg(self._process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.1)
        return False


_LINE = re.compile(
    r"(?:\([^()]*\bpid=\d+\)\s*)?"  # the process
    r"(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\]\s?)?)?"  # level, time, place
    r"(?:\[rank\d+\]:\s*)?(?P<said>.*)"
)
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Error|Exception|Interrupt)(?::\s.*)?")
_POINTS_ELSEWHERE = re.compile(
    r"root cause|see stack trace|engine core initialization failed|EngineDeadError|EngineCore encountered", re.IGNORECASE
)


def root_cause(lines: Sequence[str]) -> str:
    """The line of vLLM's log that says why it ended: of the exceptions the last that does not follow from another one.

    Its processes end one after the other, each with a traceback; all but the first only tell of the one before.
    """
    said = [_LINE.fullmatch(line.strip())["said"] for line in lines]  # type: ignore[index]
    found: list[str] = []
    follows = False
    for at, line in enumerate(said):
        if "direct cause of the following exception" in line:
            follows = True
        elif _EXCEPTION.fullmatch(line):
            if not follows and not _POINTS_ELSEWHERE.search(line):
                found.append(_of_validation(said[at + 1 : at + 4]) or line)
            follows = False
    errors = [line for line in said if "Error" in line or "error:" in line]
    return (found or errors or list(said) or ["it said nothing."])[-1]


def _of_validation(lines: Sequence[str]) -> str | None:
    """What pydantic has to say: "[type=value_error, …" stands behind it, in one of the lines after the exception's."""
    told = next((line for line in lines if " [type=" in line), None)
    return told.split(" [type=")[0].strip().removeprefix("Value error, ") if told else None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
