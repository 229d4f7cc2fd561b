"""The public link of --share: Gradio's tunnel to a port of this machine, for the page and the API alike."""

from __future__ import annotations

import secrets
from pathlib import Path
from urllib.parse import urlsplit

from modules.errors import Unavailable
from modules.settings import proxies

_API = "https://api.gradio.app"
_FILES = "https://cdn-media.huggingface.co"


def open_tunnel(host: str, port: int) -> str:
    """Open the tunnel to `host`:`port` of this machine and return the public address; it lasts as long as the process.

    Raises Unavailable with what is missing and what can be done instead. May take a minute where packets are dropped.
    """
    from gradio import networking

    try:
        return networking.setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
    except Exception as error:
        raise Unavailable(_advice(port, error)) from error


def _advice(port: int, error: Exception) -> str:
    from gradio.tunneling import BINARY_PATH

    program = Path(BINARY_PATH)
    if not program.exists():
        source = f"{urlsplit(_FILES).netloc}{proxies.through(_FILES)}"
        reason = f"its helper program could not be downloaded from {source} (no network, or blocked)"
    else:
        reason = f"the tunnel server did not answer{proxies.through(_API)} ({error})"
    return (
        f"The public link could not be made: {reason}. Three ways out: on Colab open the port with "
        f"google.colab.output.serve_kernel_port_as_window({port}); on your own computer run "
        f"'ssh -L {port}:127.0.0.1:{port} USER@THIS_MACHINE' and open http://127.0.0.1:{port}; "
        f"or put the helper program at {program} and start again."
    )
