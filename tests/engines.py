"""Real engines of others on loopback, for the tests of the remote loader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.leash import leashed
from tests.serving import free_port

LLAMA_SERVER = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.port = int(sys.argv[2])
parameters.api_keys = [sys.argv[3]]
parameters.n_ctx, parameters.n_parallel, parameters.kv_unified = 2048, 2, True
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.verbosity, parameters.ui = 0, False
server = xllamacpp.Server(parameters)
sys.stdin.read()
"""

VLLM = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
words = sys.argv[1:]
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        models = [{"id": words[words.index("--served-model-name") + 1], "object": "model", "created": 0,
                   "owned_by": "vllm", "max_model_len": 321}]
        body = json.dumps({"object": "list", "data": models}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
def serve():
    ThreadingHTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""
"""The beginning of a program that answers as `vllm serve` does once it is ready."""


def answer_json(handler: BaseHTTPRequestHandler, status: int, body: Any) -> None:
    data = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@contextmanager
def llama_server(gguf: Path, key: str) -> Iterator[str]:
    """llama-server, by xllamacpp, with a key and a context of 2,048 tokens. Yields its address."""
    port = free_port()
    with _running([sys.executable, "-c", LLAMA_SERVER, str(gguf), str(port), key], port):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def transformers_serve(folder: Path, home: Path) -> Iterator[str]:
    """`transformers serve` for one folder. Yields its address."""
    port = free_port()
    (home / "hub").mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with _running(command + options, port, environment):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def _running(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[None]:
    process = subprocess.Popen(
        leashed(command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        _wait_for_health(process, port)
        yield
    finally:
        process.terminate()
        process.communicate()


def _wait_for_health(process: subprocess.Popen, port: int, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the engine ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError("the engine did not start")
