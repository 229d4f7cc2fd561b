"""start.sh on machines that are not as they should be: one sentence that says what to do, and a status that is not zero."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["bash", "awk", "cat", "cksum", "dirname", "basename", "mktemp", "tee", "grep", "rm", "tail", "id", "sleep"]

PYTHON = """#!/usr/bin/env bash
# A stand-in for python: knows its version, makes a .venv whose pip behaves as the test says.
case "$*" in
  *version_info*) exit {new_enough} ;;
  --version) echo "Python {version}" ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/python3 ;;
  "-m pip --version") [ -e .venv/bin/python ] ;;
  -) cat >/dev/null; [ -e compiler ] ;;
  "tools/install.py "*) {pip} ;;
  "-m pip check") exit 0 ;;
  *) echo "ran: $*" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path):
    """A clone of the start scripts, and a PATH that holds nothing but basic tools and the python that a test makes."""
    clone, path = tmp_path / "clone", tmp_path / "bin"
    (clone / "tools").mkdir(parents=True)
    path.mkdir()
    for name in ("start.sh", "requirements.txt", "requirements-base.txt", "tools/environment.sh"):
        shutil.copy(ROOT / name, clone / name)
    for name in (*TOOLS, "mkdir", "cp", "env", "tr"):
        (path / name).symlink_to(str(shutil.which(name)))
    write(path / "df", "#!/usr/bin/env bash\nprintf 'x\\nx 0 0 90000 0 /\\n'\n")

    def start(
        *,
        pip: str = "exit 0",
        version: str = "3.11.7",
        free: int = 90_000,
        compiler: bool = True,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
    ):
        new_enough = int(version.split(".")[1]) < 11
        script = PYTHON.format(new_enough=int(new_enough), version=version, pip=pip)
        write(path / "python3", script)
        (clone / "compiler").unlink(missing_ok=True)
        for name, text in ({**({"compiler": ""} if compiler else {}), **(files or {})}).items():
            (clone / name).write_text(text)
        write(path / "df", f"#!/usr/bin/env bash\nprintf 'x\\nx 0 0 {free} 0 /\\n'\n")
        return subprocess.run(
            ["bash", "start.sh", *arguments],
            cwd=clone,
            env={"PATH": str(path), **(environment or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return start


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_it_installs_fetches_the_starter_and_starts_the_server(machine):
    done = machine(arguments=("--listen-port", "7999"))
    assert done.returncode == 0, done.stderr
    assert "ran: download-model.py starter" in done.stdout
    assert "ran: server.py --model SmolLM2-135M-Instruct.Q4_1 --listen-port 7999" in done.stdout


def test_the_second_start_skips_the_set_up(machine):
    machine()
    done = machine(pip="echo installing again; exit 1")
    assert done.returncode == 0, done.stderr
    assert "nstalling" not in done.stdout


def test_an_interrupted_set_up_is_taken_up_again(machine):
    fails_once = "[ -e tried ] || { : >tried; exit 1; }"
    assert machine(pip=fails_once).returncode == 1
    done = machine(pip=fails_once)
    assert done.returncode == 0
    assert "Installing" in done.stdout


@pytest.mark.parametrize(
    "chosen",
    [
        {"arguments": ("--model", "mine")},
        {"arguments": ("--model=mine",)},
        {"arguments": ("--model-dir", "/elsewhere")},
        {"environment": {"TEXTLOOM_MODEL": "mine"}},
        {"files": {"CMD_FLAGS.txt": "# my flags\n--listen-port 7999\n--model mine\n"}},
        {"files": {"settings.yaml": "model: mine\n"}},
        {"arguments": ("--help",)},
    ],
    ids=lambda chosen: next(iter(chosen)),
)
def test_a_model_that_was_chosen_is_not_replaced_by_the_starter(machine, chosen):
    done = machine(**chosen)
    assert done.returncode == 0, done.stderr
    assert "ran: server.py" in done.stdout and "starter" not in done.stdout and "SmolLM2" not in done.stdout


def test_other_flags_choose_no_model(machine):
    done = machine(arguments=("--model-menu",), files={"CMD_FLAGS.txt": "# --model mine\n"})
    assert "ran: server.py --model SmolLM2-135M-Instruct.Q4_1 --model-menu" in done.stdout


def test_without_a_compiler_all_but_gptq_is_set_up(machine):
    pip = 'case "$*" in *requirements.txt) exit 1 ;; esac; echo "installing $*"'
    done = machine(pip=pip, compiler=False)
    assert done.returncode == 0, done.stderr
    assert "GPTQ and AWQ models need a C compiler" in done.stdout
    assert "requirements.txt" not in done.stdout
    assert "ran: server.py" in done.stdout
    again = machine(pip=pip)
    assert again.returncode == 0 and "Installing the packages of requirements.txt" in again.stdout
    assert "everything else works without" in again.stderr
    assert "ran: server.py" in again.stdout


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"version": "3.9.2"}, ["3.11", "3.9.2", "PYTHON="]),
        ({"free": 100}, ["disk", "100 MB", "Free some"]),
        ({"pip": "echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1"}, ["disk is full"]),
        ({"pip": "echo 'Temporary failure in name resolution' >&2; exit 1"}, ["network"]),
        (
            {"pip": "echo 'ERROR: Failed building wheel for pypcre' >&2; exit 1", "compiler": False},
            ["apt install gcc python3-dev"],
        ),
        ({"pip": "echo 'ERROR: no matching distribution' >&2; exit 1"}, ["requirements-base.txt", "above"]),
    ],
    ids=["old python", "little disk", "full disk", "no network", "no compiler", "other"],
)
def test_trouble_is_one_sentence_that_says_what_to_do(machine, trouble, words):
    done = machine(**trouble)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("textloom: ")
    assert all(word in last for word in words), last
