"""A process that outlives the server: started in a group of its own, and found again by number and time of its start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.library.paths import write_text

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Children of this very process, which must be waited for once they end; nothing is decided by it."""


def start(command: Sequence[str], *, cwd: Path, log: Path, mark: Path, environment: Mapping[str, str]) -> int:
    """Start `command`, its output appended to `log`; `mark` says which process it is. Returns its number."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    _children[child.pid] = child
    write_text(mark, json.dumps({"pid": child.pid, "started": _started(child.pid)}))
    return child.pid


def alive(mark: Path) -> int | None:
    """The number of the process that `mark` names, if it still runs."""
    try:
        values = json.loads(mark.read_text(encoding="utf-8"))
        pid, started = int(values["pid"]), values["started"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    now = _started(pid)
    if now is not None and started is not None and abs(now - started) < 0.05:
        return pid
    if now is None and (child := _children.pop(pid, None)):
        child.wait()
    return None


def wait_for_end(mark: Path, seconds: float = 20) -> None:
    """Until the process that `mark` names has given its memory back, for so long at most."""
    end = time.monotonic() + seconds
    while alive(mark) and time.monotonic() < end:
        time.sleep(0.05)


def kill_group(pid: int) -> None:
    """End a process that `start` made, with everything that it started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if child := _children.pop(pid, None):
        child.wait()


def _started(pid: int) -> float | None:
    """When a process began, in seconds; None where there is none, or it has ended and nobody has asked how."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def python_environment() -> dict[str, str]:
    """What a worker needs in its environment: its words at once, and no wish to phone home."""
    return {"PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
