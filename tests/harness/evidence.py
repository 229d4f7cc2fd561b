"""What a failed test can show beyond its report: helpers say how to keep it, such as the output of a server or a screenshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.folder import of_test

_keepers: list[Callable[[Path], None]] = []


def keep(keeper: Callable[[Path], None]) -> None:
    """`keeper(folder)` writes files about what happened, for each test that fails from now until its module of tests ends."""
    _keepers.append(keeper)


# Runs where the test ran and before its fixtures end, so that what it used can still be asked.
@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        folder = of_test(item.nodeid)
        text = [report.longreprtext, *(f"--- {title}\n{content}" for title, content in report.sections)]
        name = f"{report.when}-{getattr(item, 'execution_count', 1)}.txt"
        (folder / name).write_text("\n\n".join(text), encoding="utf-8", errors="replace")
        for keeper in _keepers:
            keeper(folder)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What helpers know is asked for as long as their module lasts."""
    try:
        return (yield)
    finally:
        if nextitem is None or nextitem.path != item.path:
            _keepers.clear()
