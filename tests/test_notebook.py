"""llama.ipynb in a fresh kernel, with the starter model: what its cells print, and that the address answers."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from tests.serving import ROOT, free_port

pytestmark = [
    pytest.mark.slow,
    # jupyter_client's own sockets and path notices
    pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client"),
    pytest.mark.filterwarnings("ignore::ResourceWarning:zmq"),
]


@pytest.fixture
def kernel():
    manager, client = start_new_kernel(cwd=str(ROOT))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def cells() -> dict[str, str]:
    """Tag → source of the cell that has it."""
    notebook = nbformat.read(ROOT / "llama.ipynb", as_version=4)
    return {tag: cell.source for cell in notebook.cells for tag in cell.metadata.get("tags", [])}


def parameters(tmp_path: Path, port: int) -> str:
    flags = f"--listen-port {port} --load-in-8bit --bf16 --auto-devices --data-dir {tmp_path}"
    return cells()["parameters"] + f"\nFLAGS = {flags!r}"


class Cell:
    """One cell under way in a kernel: its printed text so far, and how it ended."""

    def __init__(self, client: BlockingKernelClient, source: str) -> None:
        self._client = client
        self._id = client.execute(source)
        self.text = ""
        self.error: str | None = None

    def read_until(self, pattern: str | None, timeout: float = 180) -> re.Match[str] | None:
        """Read output until it matches `pattern`; None reads to the end of the cell."""
        ends = time.monotonic() + timeout
        while True:
            if pattern and (match := re.search(pattern, self.text)):
                return match
            message = self._client.get_iopub_msg(timeout=max(0.1, ends - time.monotonic()))
            if message["parent_header"].get("msg_id") != self._id:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                self.text += content["text"]
            elif message["msg_type"] == "error":
                self.error = content["ename"]
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                assert pattern is None, f"the cell ended before {pattern}: {self.error}\n{self.text}"
                return None


def run(client: BlockingKernelClient, source: str) -> Cell:
    cell = Cell(client, source)
    cell.read_until(None)
    assert cell.error is None, cell.text
    return cell


def ask(url: str) -> str:
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    return answer.json()["choices"][0]["message"]["content"]


def test_the_launch_cell_prints_the_address_and_an_interrupt_ends_it(
    kernel: tuple[KernelManager, BlockingKernelClient], tmp_path
):
    manager, client = kernel
    port = free_port()
    run(client, "import sys\n" + parameters(tmp_path, port))
    assert "SmolLM2" in run(client, cells()["download"]).text
    cell = Cell(client, cells()["launch"])
    ready = cell.read_until(r"READY local=(\S+)")
    assert ready
    assert "--load-in-8bit" in cell.text, "what does not apply is named"
    assert ask(ready[1])
    manager.interrupt_kernel()
    cell.read_until(None)
    with pytest.raises(httpx.ConnectError):
        httpx.get(ready[1] + "/health")


def test_the_python_cell_leaves_the_kernel_free_and_can_be_stopped(
    kernel: tuple[KernelManager, BlockingKernelClient], tmp_path
):
    _, client = kernel
    port = free_port()
    run(client, parameters(tmp_path, port))
    opened = re.search(r"Open: (\S+)", run(client, cells()["python"]).text)
    assert opened
    assert run(client, "print(6 * 7)").text == "42\n"
    assert ask(opened[1])
    run(client, "server.stop()")
    with pytest.raises(httpx.ConnectError):
        httpx.get(opened[1] + "/health")
