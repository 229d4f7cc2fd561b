"""llama.cpp's process as seen from ours: started, asked over a socket that only this user can open, ended."""

from __future__ import annotations

import http.client
import json
import logging
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from modules.errors import ContextTooLong, Unavailable, UserError
from modules.generation.llamacpp.server_config import Launch

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[3]
_SECONDS_TO_END = 10


class Process:
    """A running llama-server. Raises UserError where the model cannot be loaded. Safe to use from any thread."""

    def __init__(self, launch: Launch) -> None:
        # The name of a socket may have 107 letters.
        place = "/tmp" if len(tempfile.gettempdir()) > 64 else None
        self._folder = tempfile.mkdtemp(prefix="textloom-", dir=place)
        self.launch = replace(launch, socket=f"{self._folder}/llama.sock", verbose=log.isEnabledFor(logging.DEBUG))
        self._last_words: deque[str] = deque(maxlen=40)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "modules.generation.llamacpp.server_process"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            # Ctrl-C in the terminal is for the server, which then ends this process itself.
            start_new_session=True,
        )
        self._log_reader = threading.Thread(target=self._read_log, daemon=True, name="llama.cpp log")
        self._log_reader.start()
        try:
            answer = self._greet()
        except BaseException:
            self.close()
            raise
        self.context_length: int = answer["context"]
        self.pool: int = answer["pool"]
        self.on_gpu: bool = answer["gpu"]

    def _greet(self) -> dict[str, Any]:
        words = json.dumps(asdict(self.launch))
        with suppress(BrokenPipeError):
            _file(self._child.stdin).write(words + "\n")
            _file(self._child.stdin).flush()
        line = _file(self._child.stdout).readline()
        answer = json.loads(line) if line else {"problem": ""}
        if "problem" in answer:
            self._child.wait(_SECONDS_TO_END)
            self._log_reader.join(_SECONDS_TO_END)
            raise UserError(f"llama.cpp cannot load {Path(self.launch.model).name}: {self._reason(answer['problem'])}")
        return answer

    def _reason(self, problem: str) -> str:
        """The first error in llama.cpp's log says more than those that follow from it."""
        errors = [line.split(" E ", 1)[1] for line in self._last_words if " E " in line]
        said = [line.split("error loading model: ", 1)[1] for line in errors if "error loading model: " in line]
        last = [] if problem else [*self._last_words][-1:]
        return (said or errors or last or [problem or "its process ended."])[0].strip()

    def _read_log(self) -> None:
        for line in _file(self._child.stderr):
            self._last_words.append(line.rstrip())
            log.debug("%s", line.rstrip())

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def ask(self, path: str, body: Any = None) -> Any:
        """The answer to one short question: POST with a body, GET without. Raises UserError."""
        (answer,) = Reply(self, path, body)
        return answer

    def stream(self, body: Any) -> Reply:
        """Start a completion. Raises UserError, also while it is read."""
        return Reply(self, "/completion", {**body, "stream": True})

    def gone(self) -> Unavailable:
        """Why nobody answers."""
        try:
            self._child.wait(1)
        except subprocess.TimeoutExpired:
            return Unavailable("llama.cpp does not answer. Load the model again.")
        words = "\n".join(self._last_words)
        log.error("llama.cpp ended with status %s:\n%s", self._child.returncode, words)
        return Unavailable("llama.cpp ended unexpectedly; it is started again for the next request.")

    def close(self) -> None:
        """End it and what it computes, and give its memory back. Idempotent."""
        with suppress(BrokenPipeError):
            _file(self._child.stdin).close()
        try:
            self._child.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log_reader.join(_SECONDS_TO_END)
        _file(self._child.stdout).close()
        _file(self._child.stderr).close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _file(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


class Reply:
    """One answer under way: iterate its parts. `cancel` ends it from any thread, then the iteration just stops."""

    def __init__(self, process: Process, path: str, body: Any) -> None:
        self._process = process
        self._path = path
        self._body = body
        self._wire = socket.socket(socket.AF_UNIX)
        self.cancelled = False

    def __iter__(self) -> Iterator[Any]:
        try:
            self._wire.connect(self._process.launch.socket)
            yield from self._parts()
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self.cancelled:
                raise self._process.gone() from error
        finally:
            self._wire.close()

    def _parts(self) -> Iterator[Any]:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self._wire
        content = None if self._body is None else json.dumps(self._body)
        connection.request("GET" if content is None else "POST", self._path, content, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            if response.status != 200:
                raise _as_user_error(json.loads(response.read()))
            if response.headers.get_content_type() != "text/event-stream":
                yield json.loads(response.read())
                return
            for line in response:
                if line.startswith((b"data: {", b"error: {")):
                    part = json.loads(line.split(b": ", 1)[1])
                    if "error" in part:
                        raise _as_user_error(part)
                    yield part
                    if part.get("stop"):
                        return
            raise ConnectionError("the answer broke off")

    def cancel(self) -> None:
        self.cancelled = True
        with suppress(OSError):  # it may not be connected yet, or no longer
            self._wire.shutdown(socket.SHUT_RDWR)


def _as_user_error(answer: Any) -> UserError:
    error = answer.get("error", answer)
    message, kind = str(error.get("message", error)), error.get("type", "")
    if kind == "exceed_context_size_error":
        return ContextTooLong(f"The prompt is longer than the model's context: {message}.")
    if kind == "invalid_request_error":
        return UserError(f"llama.cpp refuses the request: {message}")
    return Unavailable(f"llama.cpp could not answer: {message}")
