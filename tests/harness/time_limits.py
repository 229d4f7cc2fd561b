"""A test that takes too long leaves the stacks of all threads; one that cannot be interrupted ends its process. These are the only
clocks: hypothesis has none for each of its examples.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import pytest_timeout

from tests.harness.folder import of_test, this_run

HARD = 60
"""Seconds past its limit until a test that does not come back to Python ends its process, with the stacks."""


def stacks() -> str:
    """What every thread of this process is doing."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"--- thread {names.get(ident, '?')} ({ident})\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


class TimeLimits:
    def __init__(self, path: Path) -> None:
        self._hung = open(path, "w", encoding="utf-8")  # noqa: SIM115 (written by the process's last breath, closed below)

    # pytest-timeout starts its timer once for all attempts, and a failure ends it: each further attempt gets its own.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        settings = pytest_timeout._get_item_settings(item)
        if getattr(item, "execution_count", 1) > 1 and settings.timeout:
            item.config.hook.pytest_timeout_set_timer(item=item, settings=settings)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: pytest_timeout.Settings) -> Iterator[object]:
        made = yield
        interrupt = signal.getsignal(signal.SIGALRM)

        def handler(number: int, frame: object) -> None:
            (of_test(item.nodeid) / "stacks.txt").write_text(stacks(), encoding="utf-8")
            interrupt(number, frame)  # type: ignore[operator]

        if callable(interrupt):
            signal.signal(signal.SIGALRM, handler)
        faulthandler.dump_traceback_later(settings.timeout + HARD, exit=True, file=self._hung)
        return made

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_cancel_timer(self, item: pytest.Item) -> Iterator[object]:
        faulthandler.cancel_dump_traceback_later()
        return (yield)

    def pytest_unconfigure(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._hung.close()
        path = Path(self._hung.name)
        if path.exists() and not path.stat().st_size:
            path.unlink()


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.register_profile("suite", deadline=None)
    hypothesis.settings.load_profile("suite")
    worker = getattr(config, "workerinput", {}).get("workerid", "main")
    config.pluginmanager.register(TimeLimits(this_run() / f"hung-{worker}.txt"), "time limits")
