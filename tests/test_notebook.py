"""llama.ipynb in a fresh kernel, by nbclient and by `jupyter nbconvert`, with the starter model: its addresses answer."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from nbclient import NotebookClient

from tests.serving import ROOT, free_port

pytestmark = [
    pytest.mark.slow,
    # jupyter_client's own sockets and path notices
    pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
BLOCKING, FREE = ("install", "parameters", "download", "launch"), ("parameters", "python", "stop")


def notebook(tags: tuple[str, ...], data: Path, port: int) -> Any:
    """The notebook with the code cells of these tags; its flags keep to this machine, a port and a folder of the test."""
    made = nbformat.read(ROOT / "llama.ipynb", as_version=4)
    made.cells = [cell for cell in made.cells if cell.cell_type == "markdown" or set(cell.metadata.get("tags", [])) & set(tags)]
    flags = f"--listen-port {port} --load-in-8bit --bf16 --auto-devices --data-dir {data}"
    cells = by_tag(made)
    assert 'FLAGS = "--share --load-in-8bit --bf16 --auto-devices"' in cells["parameters"].source
    cells["parameters"].source += f"\nFLAGS = {flags!r}"
    return made


def by_tag(made: Any) -> dict[str, Any]:
    return {tag: cell for cell in made.cells for tag in cell.metadata.get("tags", [])}


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def ask(url: str) -> str:
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    return answer.json()["choices"][0]["message"]["content"]


def closed(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 0
    except httpx.TransportError:
        return True


def test_the_cells_install_download_and_launch_and_an_interrupt_ends_it(tmp_path: Path):
    made = notebook(BLOCKING, tmp_path, free_port())
    cells = by_tag(made)
    cells["launch"].metadata["tags"].append("raises-exception")  # what an interrupt looks like
    client = NotebookClient(made, timeout=240, resources={"metadata": {"path": str(ROOT)}})

    async def play() -> str:
        run = asyncio.create_task(client.async_execute())
        while not (ready := re.search(r"READY local=(\S+)", printed(cells["launch"]))):
            assert not run.done(), {tag: printed(cell) for tag, cell in cells.items()}
            await asyncio.sleep(0.2)
        assert await asyncio.to_thread(ask, ready[1])
        assert client.km is not None
        await client.km.interrupt_kernel()  # type: ignore[misc]
        await asyncio.wait_for(run, 60)
        return ready[1]

    url = asyncio.run(play())
    assert closed(url)
    assert "SmolLM2" in printed(cells["download"])
    assert "--load-in-8bit" in printed(cells["launch"]), "what does not apply is named"


def test_nbconvert_runs_the_cells_that_leave_the_kernel_free(tmp_path: Path):
    made = notebook(FREE, tmp_path, free_port())
    cells = by_tag(made)
    cells["stop"].source = (
        "import httpx\n"
        "body = {'messages': [{'role': 'user', 'content': 'Say hello.'}], 'max_tokens': 8, 'ban_eos': True}\n"
        "print(httpx.post(server.url + '/v1/chat/completions', json=body, timeout=60).json()['usage'])\n"
        + cells["stop"].source.removeprefix("# ")
    )
    assert "\nserver.stop()" in cells["stop"].source
    file = ROOT / f"llama-{os.getpid()}.ipynb"  # beside the real one, because the cells import what stands there
    nbformat.write(made, file)
    try:
        command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--stdout", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT)
    finally:
        file.unlink()
    assert done.returncode == 0, done.stderr
    ran = {tag: cell for cell in json.loads(done.stdout)["cells"] for tag in cell["metadata"].get("tags", [])}
    opened = re.search(r"Open: (\S+)", text_of(ran["python"]))
    assert opened
    assert "'completion_tokens': 8" in text_of(ran["stop"])
    assert closed(opened[1])


def text_of(cell: dict[str, Any]) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])
