"""download-model.py as people type it: what it prints, what it puts where, and its exit status."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modules.library.terminal import main
from tests.library.hub_server import Hub, running_hub
from tests.library.meta_format import make_llama, write_meta

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., int]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.repositories["TheBloke/Llama-2-7B-GPTQ"] = {
            "main": {"config.json": b"{}", "quantize_config.json": b"{}", "model.safetensors": b"x" * 200_000}
        }
        hub.repositories["org/lora"] = {"main": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"y" * 2000}}
        names = ("m.Q4_K_M.gguf", "m.Q8_0.gguf")
        hub.repositories["org/m-GGUF"] = {"main": {name: name.encode() * 1000 for name in names}}
        yield hub


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The command, with its folders below tmp_path."""

    def run(*arguments: str) -> int:
        return main([*arguments, "--model-dir", str(tmp_path / "models"), "--lora-dir", str(tmp_path / "loras")])

    return run


@pytest.mark.usefixtures("hub")
def test_the_command_that_people_know(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("TheBloke/Llama-2-7B-GPTQ") == 0
    printed = capsys.readouterr().out
    assert "is a model: 3 files, 195.3 KiB" in printed and "100 %" in printed
    assert (tmp_path / "models" / "TheBloke_Llama-2-7B-GPTQ" / "model.safetensors").stat().st_size == 200_000
    assert run("TheBloke/Llama-2-7B-GPTQ") == 0
    assert "is there already, with all its 3 files" in capsys.readouterr().out


@pytest.mark.usefixtures("hub")
def test_an_adapter_and_another_place(run: Run, tmp_path: Path) -> None:
    assert run("org/lora") == 0 and (tmp_path / "loras" / "org_lora" / "adapter_config.json").exists()
    assert run("org/lora", "--output", str(tmp_path / "else")) == 0 and (tmp_path / "else" / "org_lora").is_dir()


def test_check_prints_every_file_and_fails_where_one_is_wrong(
    hub: Hub, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("TheBloke/Llama-2-7B-GPTQ")
    assert run("TheBloke/Llama-2-7B-GPTQ", "--check") == 0
    weights = tmp_path / "models" / "TheBloke_Llama-2-7B-GPTQ" / "model.safetensors"
    weights.write_bytes(b"z" * 200_000)
    capsys.readouterr()
    assert run("TheBloke/Llama-2-7B-GPTQ", "--check") == 1
    assert "model.safetensors: has another SHA-256" in capsys.readouterr().out
    assert run("TheBloke/Llama-2-7B-GPTQ") == 0 and weights.read_bytes() == b"x" * 200_000
    assert hub.sent[-1][0] == "model.safetensors" and len(hub.sent) == 4


@pytest.mark.usefixtures("hub")
def test_what_was_copied_by_hand_is_checked_against_the_hub(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "TheBloke_Llama-2-7B-GPTQ"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 200_000)
    assert run("TheBloke/Llama-2-7B-GPTQ", "--check") == 0
    assert run("org/nowhere", "--check") == 1


@pytest.mark.usefixtures("hub")
def test_a_person_is_asked_which_quantisation(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "q8_0")
    assert run("org/m-GGUF") == 0
    assert "Q4_K_M" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "models" / "org_m-GGUF").glob("*.gguf")] == ["m.Q8_0.gguf"]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["org/nosuch"], "There is no model org/nosuch"),
        (["org/m-GGUF", "--quant", "Q1"], "has no quantisation Q1"),
        (["not a name"], "Write ORG/NAME"),
        (["--from-meta", "/nowhere"], "is not a checkpoint of Meta's"),
        (["--meta-url", "http://127.0.0.1/x"], "has a * in it"),
        (["--meta-url", "http://127.0.0.1/*", "--sizes", "8B"], "are no sizes"),
    ],
)
def test_a_failure_is_one_sentence(run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert run(*arguments) == 1
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and "Traceback" not in printed.err


def test_a_folder_that_cannot_be_written_is_one_sentence(
    hub: Hub, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").write_text("a file is in the way")
    assert run("org/m-GGUF", "--quant", "Q8_0") == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["org/name", "--from-meta", "x"], ["org/name", "--chek"]])
def test_a_command_that_makes_no_sense_shows_how_it_goes(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_a_checkpoint_of_metas_is_converted(run: Run, tmp_path: Path) -> None:
    folder = write_meta(make_llama(4), tmp_path / "llama-2-7b-chat", 1)
    assert run("--from-meta", str(folder)) == 0
    assert (tmp_path / "models" / "llama-2-7b-chat-hf" / "model.safetensors").exists()
    assert run("--from-meta", str(folder), "--name", "../x") == 1


def test_the_script_runs_by_itself_and_imports_nothing_heavy() -> None:
    script = (
        "import runpy, sys; sys.argv = ['download-model.py', 'starter']; ended = None\n"
        "try: runpy.run_path('download-model.py', run_name='__main__')\n"
        "except SystemExit as error: ended = error.code\n"
        "print(ended, [name for name in ('torch', 'transformers', 'huggingface_hub', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
