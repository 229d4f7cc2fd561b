"""The two ports of July 2023."""

from __future__ import annotations

import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from modules.api.legacy.routes import build
from modules.errors import UserError
from modules.settings.ports import listen

if TYPE_CHECKING:
    import uvicorn

    from modules.app import App


class LegacyServer:
    """Serves both ports from one thread; `close` ends it."""

    def __init__(self, app: App, host: str) -> None:
        """Raises UserError where a port is taken."""
        import uvicorn

        from modules.api.connections import TimedProtocol

        options = app.options
        self._listeners: list[socket.socket] = []
        for flag in ("api_blocking_port", "api_streaming_port"):
            try:
                self._listeners.append(listen(host, getattr(options, flag), partial(_advice, flag), queue=128))
            except UserError:
                self._close_ports()
                raise
        self.ports = [listener.getsockname()[1] for listener in self._listeners]
        config = uvicorn.Config(
            build(app),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
            http=TimedProtocol,
            ws="websockets-sansio",
            proxy_headers=False,
            ssl_keyfile=options.ssl_keyfile or None,
            ssl_certfile=options.ssl_certfile or None,
        )
        self._server: uvicorn.Server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=(self._listeners,), name="api of 2023", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def close(self) -> None:
        """Idempotent."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._close_ports()

    def _close_ports(self) -> None:
        for listener in self._listeners:
            listener.close()


def _advice(flag: str, free: int) -> str:
    return f"the API of July 2023 can take it with --{flag.replace('_', '-')} {free}."
