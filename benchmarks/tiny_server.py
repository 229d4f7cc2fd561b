"""A server of its own with a tiny, random model, for benchmarks of everything around the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.serving import Server
from tests.tiny import write_tiny_llama
from tests.tiny_gguf import write_gguf


@contextmanager
def tiny_server(arguments: Sequence[str], *, gguf: bool) -> Iterator[Server]:
    """gguf: with llama.cpp's loader instead of our own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models").mkdir()
        weights = write_tiny_llama(folder / "models" / "tiny", layers=2)
        if gguf:
            write_gguf(weights, folder / "models" / "tiny-gguf.gguf")
        model = ["--model", "tiny-gguf" if gguf else "tiny", "--model-dir", str(folder / "models")]
        with Server([*model, *arguments], data=folder / "data") as server:
            yield server
