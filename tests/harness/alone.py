"""Tests marked `alone` measure time or memory: while one runs, no other test does, in no worker and no second run of the suite.

Two locks on bytes of one file, which the system takes back from a process that ends. The door is held while waiting for the
room, so that a test that wants the room for itself is not overtaken for ever by those that share it.

Tests marked `trains_here` start server.py itself and train with it: it has one folder of runs, and lets one run go at a time.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LOCK = "TEXTLOOM_TEST_LOCK"
_DOOR, _ROOM, _RUNS = 0, 1, 2


def lock_path() -> Path:
    """One file for all runs of this user on this machine."""
    return Path(tempfile.gettempdir()) / f"textloom-tests-{os.getuid()}.lock"


@contextmanager
def _held(file: int, byte: int, kind: int) -> Iterator[None]:
    fcntl.lockf(file, kind, 1, byte)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)


class Turns:
    """Lets tests in: one marked `alone` by itself, all others together."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    # Outermost, so that waiting counts for no time limit; around reruns too.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        alone = item.get_closest_marker("alone") is not None
        with self.turn(alone=alone, trains=item.get_closest_marker("trains_here") is not None):
            return (yield)

    @contextmanager
    def turn(self, *, alone: bool, trains: bool = False) -> Iterator[None]:
        if trains:
            with _held(self._file, _RUNS, fcntl.LOCK_EX), self.turn(alone=alone):
                yield
            return
        with _held(self._file, _DOOR, fcntl.LOCK_EX):
            fcntl.lockf(self._file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, 1, _ROOM)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _ROOM)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Turns(Path(os.environ.get(LOCK) or lock_path())), "turns")
