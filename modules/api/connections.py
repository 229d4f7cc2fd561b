"""The connections of the web server: one whose request does not arrive is closed, and holds nothing for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30.0
"""For the first line and the headers, and for the beginning of a body."""
SLOWEST = 16 * 1024
"""Bytes a second that a body must come with on the whole; a slow telephone sends more."""
_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP with a time for each request to arrive in. A request that is whole may take as long as it likes."""

    _timer: asyncio.TimerHandle | None = None
    _awaited: Any = None
    _began = 0.0
    _read = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._read += len(data)
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Begin to wait for the next part of a request, or end it where all is there."""
        awaited = self.conn.their_state
        if awaited not in (h11.IDLE, h11.SEND_BODY):
            self._forget()
        elif awaited is not self._awaited:
            self._forget()
            self._awaited, self._began, self._read = awaited, self.loop.time(), 0
            self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _forget(self) -> None:
        self._awaited = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if self.transport.is_closing():
            return
        now = self.loop.time()
        if self.flow.read_paused:  # it is we who do not read
            self._began, self._read = now, 0
        allowed = HEAD_SECONDS + (self._read / SLOWEST if self._awaited is h11.SEND_BODY else 0.0)
        left = self._began + allowed - now
        if left > 0:
            self._timer = self.loop.call_later(left, self._late)
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_LATE)
        self.transport.close()
