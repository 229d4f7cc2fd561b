"""Fetch Llama 2 from Meta with the signed address of its e-mail, as Meta's download.sh does, and check every file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from modules.errors import NotAllowed, Unavailable, UserError
from modules.library.disk import GIB, need_space, size_text
from modules.library.transfer import WrongAnswer, file_size, receive
from modules.settings import proxies

Say = Callable[[str], None]


@dataclass(frozen=True)
class MetaSize:
    """One of Llama 2's sizes: its folder at Meta, its number of parts, and about how many bytes it has."""

    folder: str
    parts: int
    size: int


SIZES = {
    "7B": MetaSize("llama-2-7b", 1, 13 * GIB),
    "13B": MetaSize("llama-2-13b", 2, 25 * GIB),
    "70B": MetaSize("llama-2-70b", 8, 129 * GIB),
    "7B-chat": MetaSize("llama-2-7b-chat", 1, 13 * GIB),
    "13B-chat": MetaSize("llama-2-13b-chat", 2, 25 * GIB),
    "70B-chat": MetaSize("llama-2-70b-chat", 8, 129 * GIB),
}
SHARED = ("LICENSE", "USE_POLICY.md", "tokenizer.model", "tokenizer_checklist.chk")


def parse_sizes(text: str) -> list[MetaSize]:
    """From "7B-chat,13B". Raises UserError."""
    known = {name.lower(): size for name, size in SIZES.items()}
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names or any(name not in known for name in names):
        raise UserError(f"{text!r} are no sizes of Llama 2. There are: {', '.join(SIZES)}.", param="sizes")
    return [known[name] for name in dict.fromkeys(names)]


def fetch_from_meta(
    address: str, sizes: list[MetaSize], models: Path, *, say: Say = print, retries: int = 7, stalled: float = 30
) -> Iterator[Path]:
    """Yield each size's folder in `models` when all its files are there and have the MD5 sums that Meta gives.

    address: with the `*` that stands for a file's path. What is interrupted goes on from there. Raises UserError and its kind.
    """
    if "*" not in address or urlsplit(address).scheme not in ("http", "https"):
        raise UserError(
            "That is not the address from Meta's e-mail: it begins with https:// and has a * in it.", param="meta_url"
        )
    source = _Source(address, say, retries, stalled)
    for size in sizes:
        target = models / size.folder
        if target.exists():
            say(f"{size.folder} is there already.")
            yield target
            continue
        draft = target.with_name(f"{size.folder}.part")
        arrived = sum(file_size(file) for file in draft.glob("*")) if draft.is_dir() else 0
        need_space(models, max(size.size - arrived, 0), size.folder)
        draft.mkdir(exist_ok=True)
        for name in SHARED:
            source.fetch(name, draft / name)
        _check(draft, "tokenizer_checklist.chk", say)
        for name in (*(f"consolidated.{part:02}.pth" for part in range(size.parts)), "params.json", "checklist.chk"):
            source.fetch(f"{size.folder}/{name}", draft / name)
        _check(draft, "checklist.chk", say)
        for mark in draft.glob(".*.done"):
            mark.unlink()
        draft.rename(target)
        yield target


@dataclass(frozen=True)
class _Source:
    address: str
    say: Say
    retries: int
    stalled: float

    def fetch(self, name: str, path: Path) -> None:
        """One file; a finished one leaves a mark, so that it is not asked for again after an interruption."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        finished = path.with_name(f".{path.name}.done")
        if finished.exists():
            return
        show = _Sparingly(self.say, path.name)
        failures = 0
        while True:
            before = file_size(path)
            try:
                receive(self.address.replace("*", name), path, headers={}, stalled=self.stalled, received=show)
                break
            except HfHubHTTPError as error:
                if error.response.status_code < 500:
                    raise self._refusal(name, error.response.status_code) from None
                failures += 1
                if failures > self.retries:
                    raise Unavailable(f"Meta's server has a problem with {name} at the moment. Try again later.") from None
            except (httpx2.HTTPError, httpx2.StreamError, WrongAnswer) as error:
                failures = failures + 1 if file_size(path) <= before else 1
                if failures > self.retries:
                    raise Unavailable(
                        f"{name} cannot be fetched{proxies.through(self.address)} ({_reason(error)}). "
                        "Check the network and try again."
                    ) from None
            time.sleep(min(0.1 * 2**failures, 10))
        finished.touch()

    def _refusal(self, name: str, status: int) -> UserError:
        if status in (401, 403):
            return NotAllowed("Meta refuses the address: it is valid for 24 hours and some downloads. Ask Meta for a new one.")
        return Unavailable(f"Meta's server has no {name} ({status}).")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, WrongAnswer) else type(error).__name__


class _Sparingly:
    """Says how far a large file is, every ten seconds."""

    def __init__(self, say: Say, name: str) -> None:
        self._say, self._name, self._last = say, name, time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            self._say(f"{self._name}: {size_text(done)} …")


def _check(folder: Path, checklist: str, say: Say) -> None:
    """Compare with the MD5 sums of a .chk file ("SUM  NAME" in each line); what is wrong is removed. Raises Unavailable."""
    for line in (folder / checklist).read_text(encoding="utf-8").splitlines():
        wanted, _, name = line.strip().partition(" ")
        name = name.strip().lstrip("*").removeprefix("./")
        if not name or "/" in name:
            continue
        path = folder / name
        if not path.is_file() or _md5(path) != wanted.lower():
            path.unlink(missing_ok=True)
            for mark in folder.glob(".*.done"):
                mark.unlink()
            raise Unavailable(f"{name} arrived damaged: its MD5 sum is not Meta's. The same command fetches it again.")
        say(f"{name}: its MD5 sum is right")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
