"""What many tests share: a tiny model made on the spot, the starter model, and the rule that GPU tests skip with a reason."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from modules.library.hardware import keep_one_heap

ROOT = Path(__file__).resolve().parent.parent
GIVEN = {"training": {"make_run", "jobs"}, "browser": {"browser"}}
"""Marks, and the fixtures whose tests have them."""
pytest_plugins = (
    "tests.harness.pace",
    "tests.harness.alone",
    "tests.harness.time_limits",
    "tests.harness.evidence",
    "tests.harness.results",
)


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and a byte-level tokenizer with a ChatML template, as a model folder."""
    from tests.tiny import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tiny Llama as a .gguf file."""
    from tests.tiny_gguf import write_gguf

    return write_gguf(tiny_llama_folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def starter_gguf() -> Path:
    """The starter model as a .gguf file."""
    path = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.fail("The starter model is missing: run `python download-model.py starter`.")
    return path


@pytest.fixture(scope="session")
def starter_folder() -> Path:
    """The starter model as a transformers folder."""
    path = ROOT / "models" / "SmolLM2-135M-Instruct"
    if not (path / "config.json").exists():
        pytest.fail("The starter folder is missing: run `python download-model.py starter --as transformers`.")
    return path


def pytest_configure() -> None:
    keep_one_heap()
    # A shell starts background jobs with Ctrl-C ignored, and so would be every server that the tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, fixtures in GIVEN.items():
            if fixtures & set(getattr(item, "fixturenames", ())):
                item.add_marker(marker)
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this machine has none"))
