"""The vLLM loader: its command line, its errors, a stand-in that starts and fails like it, and vLLM itself where it is."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.generation.types import GenerationRequest, Message, TextDelta
from modules.library.model_spec import ModelSpec
from modules.loaders import vllm
from modules.loaders.choose import load
from modules.loaders.options import LoadOptions
from tests.engines import VLLM

STAND_IN = (
    VLLM
    + """
import subprocess
print("INFO starting", words[1], flush=True)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("worker", worker.pid, flush=True)
if "--fail" in words:
    print("ValueError: No available memory for the cache blocks.", flush=True)
    worker.kill()
    sys.exit(1)
serve()
"""
)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """Something that starts like `vllm serve`, with a worker process of its own."""
    script = tmp_path / "vllm.py"
    script.write_text(STAND_IN)
    monkeypatch.setenv(vllm.COMMAND, f"{sys.executable} {script}")
    return ModelSpec("folder", tmp_path, "folder", 0)


def is_running(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_options_become_its_command_line() -> None:
    options = LoadOptions(
        ctx_size=2048,
        bf16=True,
        tensor_parallel_size=4,
        pipeline_parallel_size=2,
        distributed_executor_backend="ray",
        trust_remote_code=True,
        vllm_args="--enforce-eager --seed 3",
    )
    words = vllm.arguments(ModelSpec("llama", Path("models/llama"), "folder", 0), options, 4711)
    assert words[:2] == ["serve", "models/llama"]
    said = " ".join(words)
    for expected in (
        "--host 127.0.0.1 --port 4711",
        "--tensor-parallel-size 4 --pipeline-parallel-size 2",
        "--distributed-executor-backend ray",
        "--max-model-len 2048",
        "--dtype bfloat16",
        "--trust-remote-code",
        "--enforce-eager --seed 3",
    ):
        assert expected in said
    with pytest.raises(UserError, match="vllm_args"):
        vllm.arguments(ModelSpec("llama", Path("llama"), "folder", 0), LoadOptions(vllm_args='"open'), 1)


def test_a_machine_without_vllm_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "command", lambda: None)
    with pytest.raises(UserError, match="pip install vllm"):
        load(ModelSpec("folder", Path("folder"), "folder", 0), LoadOptions(loader="vllm"), lambda progress: None)


def test_its_log_is_passed_on_and_its_end_takes_all_its_processes(stand_in: ModelSpec) -> None:
    said: list[str] = []
    model = load(stand_in, LoadOptions(loader="vllm", max_parallel=3), said.append)
    assert said[0].startswith("INFO starting")
    worker = int(next(line for line in said if line.startswith("worker")).split()[1])
    assert (model.name, model.context_length, model.capabilities.max_parallel) == ("folder", 321, 3)
    assert is_running(worker)
    model.close()
    model.close()
    assert not is_running(worker)


def test_why_it_ended_is_said(stand_in: ModelSpec) -> None:
    with pytest.raises(UserError, match="No available memory for the cache blocks"):
        load(stand_in, LoadOptions(loader="vllm", vllm_args="--fail"), lambda progress: None)


def test_a_command_that_does_not_exist_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm.COMMAND, "/nowhere/vllm")
    with pytest.raises(UserError, match="cannot be started"):
        load(ModelSpec("folder", Path("folder"), "folder", 0), LoadOptions(loader="vllm"), lambda progress: None)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(vllm.command() is None, reason=f"vLLM is not installed, and {vllm.COMMAND} does not name it")
def test_vllm_itself_answers(starter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    spec = ModelSpec("starter", starter_folder, "folder", 0)
    options = LoadOptions(loader="vllm", dtype="bfloat16", ctx_size=2048, max_parallel=2, vllm_args="--enforce-eager")
    model = load(spec, options, lambda progress: None)
    try:
        assert model.context_length == 2048
        prompt = (Message("user", "What is the capital of France?"),)
        request = GenerationRequest(prompt, SamplingParams(max_tokens=24, do_sample=False), logprobs=1)
        events = list(model.stream(request))
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        assert "Paris" in text
        assert model.detokenize(model.tokenize("héllo", special=False)) == "héllo"
        endless = GenerationRequest(prompt, SamplingParams(max_tokens=2000, ban_eos=True))
        running = model.stream(endless)
        while not isinstance(running.get(), TextDelta):
            pass
        start = time.monotonic()
        running.close()
        while model.status().running:
            assert time.monotonic() < start + 5
            time.sleep(0.01)
    finally:
        model.close()
