"""Writes `results.json`, `failed.txt` and `flaky.txt` when the tests have ended; more than three flaky ones fail the run."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.folder import of_test, this_run

MOST_FLAKY = 3


class Attempt:
    """One try of one test."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.outcome = "passed"
        self.text = ""

    def add(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        if report.outcome == "rerun" or report.failed:
            self.outcome = "failed"
            self.text = self.text or report.longreprtext
        elif report.skipped and self.outcome == "passed":
            self.outcome = "xfailed" if hasattr(report, "wasxfail") else "skipped"

    @property
    def why(self) -> str:
        """The error in one line."""
        errors = [line[1:].strip() for line in self.text.splitlines() if line.startswith("E ")]
        return (errors or self.text.strip().splitlines()[-1:] or ["?"])[0]


class Results:
    """Collects the reports of all workers. A report's `rerun` counts the attempts before it (pytest-rerunfailures)."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._attempts: dict[str, dict[int, Attempt]] = defaultdict(lambda: defaultdict(Attempt))
        self._begun = time.time()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._attempts[report.nodeid][getattr(report, "rerun", 0)].add(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            attempt = self._attempts[report.nodeid][0]
            attempt.outcome, attempt.text = "failed", report.longreprtext

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        result = yield
        flaky = self._flaky()
        if len(flaky) > MOST_FLAKY and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._write(flaky)
        return result

    def _flaky(self) -> dict[str, list[Attempt]]:
        return {
            nodeid: [tries[number] for number in sorted(tries)]
            for nodeid, tries in self._attempts.items()
            if len(tries) > 1 and tries[max(tries)].outcome != "failed"
        }

    def _write(self, flaky: dict[str, list[Attempt]]) -> None:
        last = {nodeid: tries[max(tries)] for nodeid, tries in self._attempts.items()}
        counts: dict[str, int] = defaultdict(int)
        for attempt in last.values():
            counts[attempt.outcome] += 1
        told: dict[str, Any] = {
            "seed": self._config.getoption("randomly_seed", None),
            "seconds": round(time.time() - self._begun, 1),
            "counts": counts,
            "failed": [
                {"test": nodeid, "why": attempt.why, "kept": str(of_test(nodeid))}
                for nodeid, attempt in sorted(last.items())
                if attempt.outcome == "failed"
            ],
            "flaky": [
                {"test": nodeid, "seconds": [round(one.seconds, 2) for one in tries], "why": tries[0].why}
                for nodeid, tries in sorted(flaky.items())
            ],
            "tests": {nodeid: round(attempt.seconds, 3) for nodeid, attempt in sorted(last.items())},
        }
        (self._folder / "results.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        (self._folder / "failed.txt").write_text("\n".join(one["test"] for one in told["failed"]), encoding="utf-8")
        if flaky:
            (self._folder / "flaky.txt").write_text(
                "\n".join(
                    f"FLAKY {nodeid}: failed after {tries[0].seconds:.2f} s, passed after {tries[-1].seconds:.2f} s\n{tries[0].text}\n"
                    for nodeid, tries in sorted(flaky.items())
                ),
                encoding="utf-8",
            )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results(config, this_run()), "results")
