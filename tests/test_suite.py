"""The suite itself: what it says of tests that fail now and then, that hang, that leave something behind, and what it selects."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from tests.harness.changed import Tree
from tests.harness.folder import ROOT

pytestmark = pytest.mark.slow
CONFTEST = """
pytest_plugins = ("tests.harness.alone", "tests.harness.time_limits", "tests.harness.evidence", "tests.harness.results")
"""
PLANTED = """
import os, subprocess, sys, threading, time
from pathlib import Path
import pytest

BEFORE = Path(__file__).parent / "before"

def test_every_second_time():
    if not BEFORE.exists():
        BEFORE.touch()
        raise AssertionError("planted: every second time")

def test_passes(): ...
"""
RUN = """
import sys
from pathlib import Path
from tests.harness import folder
from tools.run_tests import Run, pytest_command

folder.RESULTS = Path(sys.argv[1])
sys.exit(Run(checkers={}, preparation=[]).do(pytest_command(sys.argv[2:])))
"""


@pytest.fixture
def start(tmp_path):
    """start(tests, …): a run of the suite over a file with these tests."""
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "conftest.py").write_text(CONFTEST, encoding="utf-8")

    def start(tests: str, *options: str) -> subprocess.Popen[str]:
        (tmp_path / "planted" / "test_planted.py").write_text(PLANTED + tests, encoding="utf-8")
        command = [sys.executable, "-c", RUN, str(tmp_path / "results"), "-c", str(ROOT / "pyproject.toml")]
        return subprocess.Popen(
            [*command, "--rootdir", str(tmp_path), *options, str(tmp_path / "planted")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture
def run(start):
    """run(tests, …): what the suite says in its last lines, and its exit status."""

    def run(tests: str, *options: str) -> tuple[str, int]:
        with start(tests, *options) as process:
            said, _ = process.communicate(timeout=200)
        assert "\n===== " in said, said
        return said[said.rindex("\n===== ") :], process.returncode

    return run


def test_a_test_that_fails_every_second_time_is_told_and_fails_nothing(run, tmp_path):
    said, status = run("")
    assert status == 0, said
    assert "passed after" in said and "2 passed, 1 flaky" in said
    assert "FLAKY planted/test_planted.py::test_every_second_time: failed after" in said
    assert "AssertionError: planted: every second time" in said
    flaky = next((tmp_path / "results").glob("*/flaky.txt")).read_text(encoding="utf-8")
    assert 'raise AssertionError("planted: every second time")' in flaky


def test_more_than_three_flaky_tests_fail_the_run(run):
    tests = """
@pytest.mark.parametrize("number", range(3))
def test_another(number):
    path = BEFORE.with_name(f"before-{number}")
    if not path.exists():
        path.touch()
        raise AssertionError("planted")
"""
    said, status = run(tests, "-n0")
    assert status == 1
    assert "Too many flaky tests" in said and "4 flaky" in said and "FAILED planted" not in said


def test_what_fails_hangs_or_is_left_behind_is_told_with_what_to_do(run, tmp_path):
    tests = """
def test_always():
    raise AssertionError("planted: always")

@pytest.mark.timeout(1)
def test_hangs():
    threading.Thread(target=time.sleep, args=(30,), name="sleeper", daemon=True).start()
    time.sleep(100)

def test_leaves():
    pid = os.posix_spawn(sys.executable, ["python", "-c", "import time; time.sleep(500)"], os.environ)
    BEFORE.with_name("pid").write_text(str(pid))
"""
    said, status = run(tests)
    assert status == 1
    assert "FAILED planted/test_planted.py::test_always: AssertionError: planted: always" in said
    assert "FAILED planted/test_planted.py::test_hangs: Failed: Timeout" in said
    again = ROOT / said.split("bash test.sh @")[1].splitlines()[0]
    assert again.read_text(encoding="utf-8").split() == [
        f"planted/test_planted.py::test_{name}" for name in ("always", "hangs")
    ]
    kept = {path.name for path in again.parent.glob("failed/*test_always/*")}
    assert kept == {"call-1.txt", "call-2.txt"}
    stacks = next(again.parent.glob("failed/*test_hangs/stacks.txt")).read_text(encoding="utf-8")
    assert "thread sleeper" in stacks and "in test_hangs" in stacks
    assert "LEFT BEHIND process" in said and "(started by planted/test_planted.py::test_leaves)" in said
    assert not alive(int((tmp_path / "planted" / "pid").read_text()))


def test_without_reruns_the_first_failure_counts(run):
    said, status = run("", "--reruns=0", "-n0")
    assert status == 1
    assert "FAILED planted/test_planted.py::test_every_second_time" in said and "0 flaky" in said


def test_when_the_run_is_killed_its_processes_end_too(start, tmp_path):
    tests = """
def test_serves():
    from tests.leash import leashed
    process = subprocess.Popen(leashed([sys.executable, "-c", "import time; time.sleep(500)"]))
    BEFORE.with_name("pids").write_text(f"{os.getpid()} {process.pid}\\n")
    time.sleep(100)
"""
    process = start(tests)
    written = tmp_path / "planted" / "pids"
    try:
        wait(lambda: written.exists() and written.read_text().endswith("\n"))
        process.kill()
        wait(lambda: not any(alive(int(pid)) for pid in written.read_text().split()))
    finally:
        process.communicate()


def wait(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_test_that_wants_to_be_alone_waits_for_the_others_and_they_for_it(tmp_path):
    """Two processes: each writes when it enters and leaves its turn."""
    code = """
import sys, time
from pathlib import Path
from tests.harness.alone import Turns
turns, log = Turns(Path(sys.argv[1])), open(sys.argv[2], "a", buffering=1)
for number in range(30):
    alone = sys.argv[3] == "alone" and number % 3 == 0
    with turns.turn(alone=alone):
        log.write(f"{sys.argv[3]} in{' alone' if alone else ''}\\n")
        time.sleep(0.002)
        log.write(f"{sys.argv[3]} out\\n")
"""
    words = [sys.executable, "-c", code, str(tmp_path / "lock"), str(tmp_path / "log")]
    both = [subprocess.Popen([*words, name], cwd=ROOT) for name in ("alone", "shared")]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    lines = (tmp_path / "log").read_text().splitlines()
    inside: set[str] = set()
    for number, line in enumerate(lines):
        name, way, *alone = line.split()
        if alone:
            assert not inside and lines[number + 1] == "alone out"
        inside = inside | {name} if way == "in" else inside - {name}
    assert len(lines) == 120


def test_tests_that_train_with_the_server_itself_do_so_one_after_the_other(tmp_path):
    code = """
import sys, time
from pathlib import Path
from tests.harness.alone import Turns
turns, log = Turns(Path(sys.argv[1])), open(sys.argv[2], "a", buffering=1)
for number in range(30):
    with turns.turn(alone=number % 10 == 0, trains=True):
        log.write("in\\n")
        time.sleep(0.002)
        log.write("out\\n")
"""
    words = [sys.executable, "-c", code, str(tmp_path / "lock"), str(tmp_path / "log")]
    both = [subprocess.Popen(words, cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text().splitlines() == ["in", "out"] * 60


def test_what_was_changed_selects_the_tests_that_need_it(tmp_path):
    files = {
        "modules/__init__.py": "", "modules/low.py": "", "modules/high.py": "from modules import low",
        "modules/apart.py": "", "modules/page/shown.py": "", "modules/page/script.js": "",
        "run.py": "import modules.apart", "presets/warm.yaml": "", "tests/__init__.py": "", "tests/helper.py": "import modules.high",
        "tests/test_high.py": "from tests import helper", "tests/test_apart.py": "subprocess.run(['python', 'run.py'])",
        "tests/page/conftest.py": "import modules.page.shown", "tests/page/test_page.py": "", "tests/test_presets.py": "ROOT / 'presets'",
        "tests/test_lazy.py": "CODE = 'python -m modules.low'", "pyproject.toml": "", "CHANGELOG.md": "", "odd.bin": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def tests_of(*paths: str) -> set[str]:
        return {path.removeprefix("tests/") for path in Tree(tmp_path, files).tests_of(paths)}

    everything = {"test_high.py", "test_apart.py", "page/test_page.py", "test_presets.py", "test_lazy.py"}
    assert tests_of("modules/low.py") == {"test_high.py", "test_lazy.py"}
    assert tests_of("modules/apart.py") == {"test_apart.py"}
    assert tests_of("modules/page/script.js") == {"page/test_page.py"}
    assert tests_of("presets/warm.yaml") == {"test_presets.py"}
    assert tests_of("tests/test_apart.py") == {"test_apart.py"}
    assert tests_of("CHANGELOG.md") == set()
    assert tests_of("pyproject.toml") == tests_of("odd.bin") == tests_of("modules/gone.py") == everything
