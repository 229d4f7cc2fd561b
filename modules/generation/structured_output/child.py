"""The process that tries forms: `python -m modules.generation.structured_output.child ENGINE`, with a socket as its input.

Each form is tried in a fork of it, with a limit of time and memory: one that unfolds without end costs that fork and nothing else.
The sockets to talk over come through the first one, as ancillary data; the process ends when its input does.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any

from modules.errors import UserError
from modules.generation.structured_output.builtin import Library
from modules.generation.structured_output.trial import Asked, try_form

SECONDS = 0.3
"""Of computing, for one form and for each piece of a reply that follows it."""
MEMORY = 256 << 20


def main() -> None:
    library = Library() if sys.argv[1] == "llama.cpp" else None
    try_form(Asked("json_schema", '{"type": "object"}'), library)  # what is imported and made once is there before each fork
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control = socket.socket(fileno=sys.stdin.fileno())
    while True:
        data, files, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # native code has much to say about its end
            _answer(socket.socket(fileno=files[0]), library)
            os._exit(0)
        for file in files:
            os.close(file)


def _answer(wire: socket.socket, library: Library | None) -> None:
    """Try one form, and go along with the reply that it is for. That this process is ended by a signal is an answer as well."""
    _limit_memory()
    with wire.makefile("rwb") as lines:
        asked = Asked(**json.loads(lines.readline()))
        _limit_time()
        try:
            trial = try_form(asked, library)
        except UserError as error:
            _say(lines, {"problem": error.message, "param": error.param})
            return
        except Exception:  # noqa: BLE001 - it is told in the log of the server
            _say(lines, {"broken": traceback.format_exc()})
            return
        _say(lines, {"lark": trial.lark, "ignored": trial.ignored})
        for line in lines:
            _limit_time()
            _say(lines, trial.follow(**json.loads(line)))


def _limit_memory() -> None:
    with suppress(OSError):  # without /proc the time alone is limited
        with open("/proc/self/statm") as sizes:
            used = int(sizes.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time() -> None:
    """From now on the process may compute for so long; the signal ends it in native code too."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)


def _say(lines: Any, answer: dict[str, Any]) -> None:
    lines.write(json.dumps(answer).encode() + b"\n")
    lines.flush()


if __name__ == "__main__":
    main()
