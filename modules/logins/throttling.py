"""Wrong passwords and keys: how long whoever guesses must wait, for each account from each address by itself."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from modules.settings.addresses import parse

FREE = 4
"""Different wrong secrets before there is a delay: people mistype, and programs send one old key again and again."""
LONGEST = 60.0
FORGOTTEN_AFTER = 3600.0
SHORT = 12
"""Letters of a secret; shorter ones can be found by trying."""
MOST = 20_000
"""Entries that are kept; the oldest go first."""

Guesser = tuple[str, ...]
"""Whose tries are counted together: the account, the address, and the browser where it is known."""


@dataclass
class _Count:
    wrong: deque[bytes] = field(default_factory=lambda: deque(maxlen=64))
    number: int = 0
    last: float = 0.0
    until: float = 0.0


class Tries:
    """Counts for one server. Safe to use from any thread.

    Whoever guesses at an account delays that account from that address, and nothing else. Where many share an address, as
    behind a tunnel, a long key that was right there before is taken all the same, so that nobody shuts out a program that runs.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: OrderedDict[Guesser, _Count] = OrderedDict()
        self._taken: OrderedDict[tuple[Guesser, bytes], None] = OrderedDict()
        self._salt = secrets.token_bytes(16)

    def attempt(self, guesser: Guesser, secret: str, right: Callable[[], bool], *, program: bool = False) -> tuple[bool, float]:
        """(whether `right` says so, 0.0), or (False, the seconds to wait) without asking it.

        program: one that sends its key with each request, and must not wait for what others do.
        """
        digest = hashlib.sha256(self._salt + secret.encode(errors="surrogatepass")).digest()
        with self._lock:
            now = self._clock()
            count = self._counts.get(guesser, _Count())
            if now - count.last > FORGOTTEN_AFTER:
                count = _Count()
            if digest in count.wrong:
                return False, 0.0
            taken = (guesser, digest) in self._taken
            if now < count.until and not taken:
                return False, count.until - now
            if not right():
                self._note_wrong(guesser, count, digest, now)
                return False, 0.0
            if taken:  # this forgives nobody: else a program that runs would, at each request, whoever guesses beside it
                return True, 0.0
            self._counts.pop(guesser, None)
            if program and len(secret) >= SHORT:
                _put(self._taken, (guesser, digest), None)
            return True, 0.0

    def _note_wrong(self, guesser: Guesser, count: _Count, digest: bytes, now: float) -> None:
        count.wrong.append(digest)
        count.number, count.last = count.number + 1, now
        if count.number >= FREE:
            count.until = now + min(LONGEST, 2.0 ** min(count.number - FREE, 10))
        _put(self._counts, guesser, count)


def _put(entries: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > MOST:
        entries.popitem(last=False)


def place_of(address: str) -> str:
    """What one visitor can hardly change: an IPv4 address, or the network of an IPv6 address."""
    known = parse(address)
    return str(ipaddress.ip_network((known, 64), strict=False)) if isinstance(known, ipaddress.IPv6Address) else address
