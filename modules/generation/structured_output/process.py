"""Forms on their way through the process that tries them: asked once for each request, started again where it has died."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modules.errors import Unavailable, UserError
from modules.generation.sampling import SamplingParams
from modules.generation.structured_output.lark import NAMES
from modules.generation.structured_output.trial import NUMBERED, too_much

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[3]
AT_ONCE = 2
_SECONDS_TO_WAIT = 10.0
_SECONDS_TO_END = 10
_NAMED = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True)
class Form:
    """A form that was tried: the grammar for the engine, and the places in a JSON schema of what is not held."""

    lark: str
    ignored: tuple[str, ...] = ()


class Follower:
    """Goes along with one reply in the process that tried its form, and tells where the reply leaves it.

    field: of the request, with the form in it. special: the control tokens that the form names.
    """

    def __init__(self, form: Form, field: str, special: Sequence[str], wire: socket.socket) -> None:
        self.form = form
        self.field = field
        self.special = tuple(special)
        self._wire = wire
        self._lines = wire.makefile("rwb")

    def fits(self, pieces: Sequence[str | dict[str, str]], *, last: bool = False) -> bool:
        """Whether the reply may go on so; last: and end there. pieces: texts, and control tokens as {"token": its text}."""
        with suppress(OSError, ValueError):  # the process may have died, and the reader of the reply may have left
            self._lines.write(json.dumps({"pieces": pieces, "last": last}).encode() + b"\n")
            self._lines.flush()
            if line := self._lines.readline():
                return json.loads(line)["fits"]
        return False

    def close(self) -> None:
        """From any thread, also while another asks: it gets False."""
        with suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._lines.close()
        self._wire.close()


class Trials:
    """Tries the forms of one model's requests. The process is started with the first of them. Safe to use from any thread."""

    def __init__(self, engine: Literal["transformers", "llama.cpp"], special: Callable[[str], Iterable[str]]) -> None:
        """special: which of some words are control tokens of the model, asked for what a grammar names in angle brackets."""
        self._engine = engine
        self._special = special
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def form(self, sampling: SamplingParams) -> Form | None:
        """The form that a reply must have, tried; None where it is free. Raises UserError."""
        follower = self.follower(sampling)
        if follower is None:
            return None
        follower.close()
        return follower.form

    def follower(self, sampling: SamplingParams) -> Follower | None:
        """The same with somebody who follows the reply; the caller closes it."""
        field = next((name for name in NAMES if getattr(sampling, name)), None)
        if field is None:
            return None
        text: str = getattr(sampling, field)
        named = set(_NAMED.findall(text)) if field == "grammar" else set()
        if self._engine == "llama.cpp" and any(NUMBERED.fullmatch(word) for word in named):
            raise UserError("llama.cpp takes no tokens by number in a grammar. Name them by their text.", param="grammar")
        special = [word for word in self._special(text) if word in named] if named else []
        if not self._turns.acquire(timeout=_SECONDS_TO_WAIT):
            raise Unavailable("Too many forms of replies are being tried at once. Try again in a moment.", param=field)
        try:
            return self._ask(field, {"field": field, "text": text, "special": special})
        finally:
            self._turns.release()

    def _ask(self, field: str, asked: dict[str, Any]) -> Follower:
        wire = self._connect()
        answer: dict[str, Any] | None = None
        try:
            wire.settimeout(_SECONDS_TO_WAIT)
            with suppress(ConnectionError), wire.makefile("rwb") as lines:
                lines.write(json.dumps(asked).encode() + b"\n")
                lines.flush()
                answer = json.loads(lines.readline() or "null")
            if answer is None:
                raise too_much(field)  # the limits have ended it
            if "broken" in answer:
                log.error("a form could not be tried:\n%s", answer["broken"])
                raise Unavailable("This form of a reply could not be tried; the log has the reason.", param=field)
            if "problem" in answer:
                raise UserError(answer["problem"], param=answer["param"])
        except TimeoutError:
            wire.close()
            raise Unavailable("The form of the reply could not be tried in time. Try again in a moment.", param=field) from None
        except BaseException:
            wire.close()
            raise
        return Follower(Form(answer["lark"], tuple(answer["ignored"])), field, asked["special"], wire)

    def _connect(self) -> socket.socket:
        """A line to a new fork of the process."""
        ours, theirs = socket.socketpair()
        with theirs, self._starting:
            for _ in range(2):
                if self._process is None or self._process.poll() is not None:
                    self._start()
                assert self._control is not None
                with suppress(OSError):
                    socket.send_fds(self._control, [b"+"], [theirs.fileno()])
                    return ours
                self._end()
        ours.close()
        raise Unavailable("The process that tries the forms of replies does not start; the log has the reason.")

    def _start(self) -> None:
        self._end()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "modules.generation.structured_output.child", self._engine],
                cwd=ROOT,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._control = None

    def close(self) -> None:
        """End the process. Idempotent."""
        with self._starting:
            self._end()
