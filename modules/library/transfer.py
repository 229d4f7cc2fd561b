"""One connection that appends what it receives to a file, from where the file ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

_BLOCK = 1 << 18


def file_size(path: Path) -> int:
    """0 for a file that is not there."""
    return path.stat().st_size if path.is_file() else 0


def receive(address: str, path: Path, *, headers: Mapping[str, str], stalled: float, received: Callable[[int], None]) -> None:
    """Append to `path` what `address` gives; from the beginning where the server knows no ranges.

    stalled: seconds without a byte after which the connection is given up. received: told the size of the file as it grows;
    what it raises ends the transfer. Raises httpx2's errors, among them HfHubHTTPError for a refusal.
    """
    from huggingface_hub.utils import get_session, hf_raise_for_status

    have = file_size(path)
    # Compressed transfer would make the sizes disagree.
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with get_session().stream("GET", address, headers=asked, timeout=stalled) as response:
        if response.is_error:
            response.read()
            hf_raise_for_status(response)
        resumed = have > 0 and response.status_code == 206
        done = have if resumed else 0
        with path.open("ab" if resumed else "wb") as out:
            for block in response.iter_bytes(_BLOCK):
                out.write(block)
                done += len(block)
                received(done)
