"""The folder of one test run: `.test-results/NAME`, with `results.json`, `flaky.txt`, `report.xml` and what is kept of failed tests."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from pathlib import Path

VARIABLE = "TEXTLOOM_TEST_RUN"
"""Names the folder of the run; every process that a test starts inherits it."""
ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / ".test-results"
_KEPT = 10


def new_run() -> Path:
    """An empty folder for a run that begins now. Only the newest ten are kept."""
    RESULTS.mkdir(exist_ok=True)
    runs = sorted((path for path in RESULTS.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in runs[: 1 - _KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    folder = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.mkdir()
    return folder


def this_run() -> Path:
    """The folder of the run that this process belongs to. Begins one where pytest was started by itself."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = str(new_run())
    return Path(os.environ[VARIABLE])


def of_test(nodeid: str) -> Path:
    """Where to put what helps to understand why this test failed; the folder is made."""
    name = re.sub(r"[^\w.-]+", "_", nodeid.removeprefix("tests/")).strip("_")
    folder = this_run() / "failed" / name[:120]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
