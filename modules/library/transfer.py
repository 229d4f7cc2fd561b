"""One connection that appends what it receives to a file, from where the file ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from modules.errors import Unavailable

if TYPE_CHECKING:
    import httpx2

_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_PAGES = (".html", ".htm", ".xhtml")


class WrongAnswer(Exception):
    """What came is not what was asked for: another part of the file, or one of another length."""


def file_size(path: Path) -> int:
    """0 for a file that is not there."""
    return path.stat().st_size if path.is_file() else 0


def receive(
    address: str,
    path: Path,
    *,
    headers: Mapping[str, str],
    stalled: float,
    received: Callable[[int], None],
    size: int | None = None,
) -> None:
    """Append to `path` what `address` gives, as it arrives; from the beginning where the server knows no ranges.

    size: how many bytes the whole file has, where that is known. stalled: seconds without a byte after which the connection is
    given up. received: told the size of the file as it grows; what it raises ends the transfer. Raises httpx2's errors, among
    them HfHubHTTPError for a refusal, WrongAnswer, and Unavailable for a web page. A part that the server cannot complete is gone
    then, and the next call begins anew.
    """
    from huggingface_hub.utils import get_session, hf_raise_for_status

    have = file_size(path)
    # Compressed transfer would make the sizes disagree.
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with get_session().stream("GET", address, headers=asked, timeout=stalled) as response:
        first, total = _range_of(response)
        if have and response.status_code == 416:
            if total == have and size in (None, have):
                return  # it was all there already
            path.unlink()
            raise WrongAnswer(f"there is nothing after its first {have} bytes")
        if response.is_error:
            response.read()
            hf_raise_for_status(response)
        _refuse_pages(response, path)
        if total is not None and size not in (None, total):
            if response.status_code == 206:
                path.unlink(missing_ok=True)
            raise WrongAnswer(f"it has {total} bytes there, and should have {size}")
        resumed = have > 0 and response.status_code == 206
        if (resumed and "Content-Encoding" in response.headers) or (response.status_code == 206 and first != have):
            path.unlink(missing_ok=True)
            raise WrongAnswer(f"its part from byte {have} was asked for, and another came")
        done = have if resumed else 0
        with path.open("ab" if resumed else "wb") as out:
            for block in response.iter_bytes():
                done += len(block)
                if size is not None and done > size:
                    raise WrongAnswer(f"it does not end after its {size} bytes")
                out.write(block)
                received(done)
    if size is not None and done < size:
        raise WrongAnswer(f"it ends after {done} of its {size} bytes")


def _range_of(response: httpx2.Response) -> tuple[int | None, int | None]:
    """(first byte, bytes of the whole file) as the headers say; None for what they do not say."""
    if found := _RANGE.match(response.headers.get("Content-Range", "")):
        return (int(found[1]) if found[1] else None), (int(found[2]) if found[2] != "*" else None)
    length = response.headers.get("Content-Length", "")
    whole = response.status_code == 200 and length.isascii() and length.isdigit() and "Content-Encoding" not in response.headers
    return None, int(length) if whole else None


def _refuse_pages(response: httpx2.Response, path: Path) -> None:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml") and path.suffix.lower() not in _PAGES:
        raise page_instead(path, str(response.url))


def page_instead(path: Path, address: str) -> Unavailable:
    """What to do about a web page, such as the login of a network, that came in place of a file."""
    host = urlsplit(address).netloc
    return Unavailable(
        f"{host} sent a web page in place of {path.name}. Open {host} in a browser to see what it says: "
        "a network may ask for a login, and a mirror may have moved (HF_ENDPOINT)."
    )
