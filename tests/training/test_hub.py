"""A data set of the Hugging Face Hub, from a small hub on this machine. In processes of their own: libraries read the hub's address once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.library.hub_server import Hub, running_hub
from tests.training.conftest import counting_rows

ROOT = Path(__file__).resolve().parent.parent.parent
READ = """
import json, sys
from pathlib import Path
from modules.errors import UserError
from modules.training.rows import read_rows
for name in sys.argv[1:]:
    try:
        print(json.dumps([row for _, row in read_rows(Path("."), name, 3).rows]))
    except UserError as error:
        print(json.dumps(f"{type(error).__name__}: {error.message}"))
"""


@pytest.fixture
def hub():
    with running_hub() as hub:
        rows = {"train.jsonl": lines(counting_rows(20)), "test.jsonl": lines([{"instruction": "Test", "output": "1 2"}])}
        hub.repositories["datasets/org/counting"] = {"main": rows}
        hub.repositories["datasets/org/gated"] = {"main": {"train.jsonl": lines(counting_rows(2))}}
        hub.gated.add("datasets/org/gated")
        yield hub


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def environment(hub: Hub | str, home: Path) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    return {**own, "HF_ENDPOINT": hub if isinstance(hub, str) else hub.address, "HF_HOME": str(home)}


def read(environment: dict[str, str], *names: str) -> list[list[dict[str, str]] | str]:
    done = subprocess.run([sys.executable, "-c", READ, *names], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_its_rows_are_read_and_what_cannot_be_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    names = [
        "org/counting",
        "org/counting/test",
        "org/nothing",
        "org/gated",
        "org/counting/other",
        "org/counting:other",
        "alone",
    ]
    train, test, nothing, gated, split, configuration, alone = read(
        environment(hub, tmp_path), *(f"hub:{name}" for name in names)
    )
    assert train == counting_rows(20)[:3]
    # datasets adds the columns of the other split, or does not, by which it read first
    assert [{key: value for key, value in row.items() if value is not None} for row in test] == [  # type: ignore[union-attr]
        {"instruction": "Test", "output": "1 2"}
    ]
    assert nothing == (
        f"NotFound: There is no data set org/nothing on {hub.address.removeprefix('http://')}. "
        "If it is private, set HF_TOKEN to a token that may read it."
    )
    assert gated == (
        f"NotAllowed: org/gated is gated: accept its terms on {hub.address}/datasets/org/gated, "
        "and set HF_TOKEN to a token of that account."
    )
    assert "other" in split and "train" in split and "\n" not in split
    assert "other" in configuration and "default" in configuration and "\n" not in configuration
    assert alone == "UserError: hub:alone is not the name of a data set: write hub:ORGANISATION/NAME."
    (unreachable,) = read(environment("http://127.0.0.1:9", tmp_path / "other"), "hub:org/counting")
    assert isinstance(unreachable, str) and "127.0.0.1:9 cannot be reached" in unreachable and "HF_ENDPOINT" in unreachable


@pytest.mark.slow
def test_a_run_is_trained_from_it(hub: Hub, make_run, tmp_path: Path) -> None:
    folder = make_run("from-the-hub", dataset="hub:org/counting", max_steps=3)
    done = subprocess.run(
        [sys.executable, "-m", "modules.training.worker", str(folder.path)],
        cwd=ROOT, env=environment(hub, tmp_path / "home"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (Path(folder.read_plan().output) / "adapter_model.safetensors").exists()
