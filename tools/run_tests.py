"""What `test.sh` runs once the packages are there: the checkers, the tests beside them, and last what to do about what failed.

bash test.sh                    everything
bash test.sh --fast             no browser, nothing marked `slow`, no training: what one runs while working
bash test.sh --changed[=REV]    the tests of what differs from REV (without one: from where this branch left its upstream)
bash test.sh --no-reruns        a test that fails is not tried again
bash test.sh …                  everything else goes to pytest
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.harness import alone, changed, folder
from tests.harness.results import MOST_FLAKY
from tests.leash import leashed

ROOT = folder.ROOT
FAST = "not browser and not slow and not training"
DATA = ("models", "loras", "training", "characters", "presets", "prompts", "data", "logs")
"""Folders of the program's own in which no test may leave anything."""
CHECKERS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "lint-imports": ["lint-imports"],
    "pyright": ["pyright"],
    "types of the script": [sys.executable, "-m", "tools.check_script", "types"],
    "biome": [sys.executable, "-m", "tools.check_script", "lint"],
}
PREPARATION = [["download-model.py", "starter"], ["download-model.py", "starter", "--as", "transformers"]]
"""What Python runs first, beside the checkers: the models that tests use."""
_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of <linux/prctl.h>: processes whose parent ended become children of this one."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bash test.sh", usage=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--changed", nargs="?", const="", default=None)
    parser.add_argument("--no-reruns", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    selected: list[str] = []
    if options.changed is not None:
        selected, why = changed.tests_of(ROOT, options.changed)
        print(why, flush=True)
    chosen = options.changed is None or selected
    command = pytest_command([*rest, *selected], fast=options.fast, reruns=not options.no_reruns)
    return Run().do(command if chosen else [])


def pytest_command(rest: list[str], *, fast: bool = False, reruns: bool = True) -> list[str]:
    """pytest over `rest`, on all cores where that is worth their start; reruns and workers are out where one debugs."""
    command = [sys.executable, "-m", "pytest", f"--randomly-seed={secrets.randbits(32)}", "--durations=30", "--durations-min=1"]
    debugs = any(option in ("--pdb", "--trace", "-s") for option in rest)
    few = any(".py" in option for option in rest if not option.startswith("-")) and len(rest) < 4
    if not debugs and not few and not any(option.startswith("-n") for option in rest):
        command += ["-n", "auto", "--maxprocesses=4", "--dist=worksteal"]
    if reruns and not debugs:
        command += ["--reruns=1"]
    if fast:
        command += ["-m", FAST]
    return command + rest


class Run:
    """One run: its folder, its temporary folder, and every process that it started."""

    def __init__(self, checkers: dict[str, list[str]] = CHECKERS, preparation: Sequence[list[str]] = PREPARATION) -> None:
        self._checkers, self._preparation = checkers, preparation
        self.folder = folder.new_run()
        self.temporary = temporary_folder()
        self.environment = {
            **os.environ,
            folder.VARIABLE: str(self.folder),
            alone.LOCK: str(alone.lock_path()),
            "TMPDIR": str(self.temporary),
            # Two workers on two cores: more threads than cores wait for each other.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }
        self._running: dict[int, str] = {}
        self._status: dict[str, int] = {}
        self._begun = time.monotonic()

    def do(self, pytest: list[str]) -> int:
        """Run the checkers, and this command unless it is empty. Returns the exit status."""
        self._adopt_orphans()
        print(f"$ {shlex.join(pytest[1:])}", flush=True)  # with the seed of the order, to run it again
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        try:
            for name, command in self._checkers.items():
                self._start(name, command, self._output(name))
            prepared = all(self._prepare(command) for command in self._preparation if pytest)
            before = files_of_data()
            if pytest and prepared:
                self._start("pytest", [*pytest, f"--junitxml={self.folder / 'report.xml'}"])
            while self._running:
                self._wait()
            left = [*self._end_the_rest(), *(f"file {path}" for path in sorted(files_of_data() - before))]
            return self._tell(left)
        finally:
            self._end_the_rest()
            shutil.rmtree(self.temporary, ignore_errors=True)

    # --- processes

    def _adopt_orphans(self) -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)

    def _start(self, name: str, command: list[str], output: Path | None = None) -> None:
        with open(output or os.devnull, "w") as file:
            to = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT} if output else {}
            process = subprocess.Popen(leashed(command), cwd=ROOT, env=self.environment, **to)  # type: ignore[call-overload]
        self._running[process.pid] = name

    def _prepare(self, command: list[str]) -> bool:
        """Whether it did its work."""
        name = " ".join(command)
        self._start(name, [sys.executable, *command])
        while name not in self._status:
            self._wait()
        return self._status[name] == 0

    def _wait(self) -> None:
        """Wait for any process to end: ours, or an orphan that would stay a zombie."""
        pid, status = os.wait()
        name = self._running.pop(pid, None)
        if name is None:
            return
        self._status[name] = os.waitstatus_to_exitcode(status)
        output = self._output(name)
        if self._status[name] and output.exists():
            print(f"\n{name}:\n{output.read_text(errors='replace')}", flush=True)

    def _output(self, name: str) -> Path:
        """Where a checker writes."""
        return self.folder / f"{name.replace(' ', '-')}.txt"

    def _stop(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and sys.stdin.isatty():
            return  # the terminal has told all of them
        for pid in self._running:
            os.kill(pid, number)

    def _end_the_rest(self) -> list[str]:
        """Kill what is left of the run, and say what it was. Asked once more after a second: what is ending may end."""
        if children := psutil.Process().children(recursive=True):
            psutil.wait_procs(children, timeout=1)
        left = []
        for process in psutil.Process().children(recursive=True):
            try:
                by = process.environ().get("PYTEST_CURRENT_TEST", "?").removesuffix(" (call)").removesuffix(" (setup)")
                left.append(f"process {process.pid} {shlex.join(process.cmdline())[:160]} (started by {by})")
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return left

    # --- the last lines

    def _tell(self, left: list[str]) -> int:
        path = self.folder / "results.json"
        results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        seconds = round(time.monotonic() - self._begun)
        failed, flaky = results.get("failed", []), results.get("flaky", [])
        broken = [name for name, status in self._status.items() if status and name != "pytest"]
        status = self._status.get("pytest", 0) or bool(broken) or bool(left)
        place = shown(self.folder)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(results.get("counts", {}).items()))
        if flaky:
            print(f"\nWhat flaky tests said first:\n\n{(self.folder / 'flaky.txt').read_text()}")
        outcome = "FAILED" if status else "passed"
        lines = [f"\n===== {outcome} after {seconds // 60}:{seconds % 60:02}: {counts or 'no test ran'}, {len(flaky)} flaky"]
        lines.append(f"Seed {results.get('seed')}; what is kept of this run: {place}")
        for one in flaky:
            first, second = one["seconds"][0], one["seconds"][-1]
            lines.append(f"FLAKY {one['test']}: failed after {first} s, passed after {second} s: {one['why']}")
        if len(flaky) > MOST_FLAKY:
            lines.append(
                f"Too many flaky tests: at most {MOST_FLAKY} are let pass. Their first failures: {place / 'flaky.txt'}"
            )
        for one in failed:
            lines += [f"FAILED {one['test']}: {one['why']}", f"       {shown(Path(one['kept']))}"]
        if failed:
            lines.append(f"Run just these: bash test.sh @{place / 'failed.txt'}")
        lines += [f"FAILED {name}: see above" for name in broken]
        lines += [f"LEFT BEHIND {what}" for what in left]
        if not results and self._status.get("pytest"):
            lines.append(f"pytest ended with status {self._status['pytest']} before it could tell what ran.")
        print("\n".join(lines), flush=True)
        return int(status)


def temporary_folder() -> Path:
    """An empty folder of this process; those of runs that were killed are removed."""
    for old in Path(tempfile.gettempdir()).glob("textloom-tests-*-*"):
        if not psutil.pid_exists(int(old.name.split("-")[2])):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"textloom-tests-{os.getpid()}-"))


def shown(path: Path) -> Path:
    """From the top of the checkout where it lies in it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def files_of_data() -> set[str]:
    """All files in the program's own data folders and at the top, as paths from there."""
    paths = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    paths += [path for name in DATA for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts]
    return {str(path.relative_to(ROOT)) for path in paths if path.is_file()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
