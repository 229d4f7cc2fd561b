"""The two ports of July 2023."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

from modules.api.legacy.routes import build
from modules.errors import UserError

if TYPE_CHECKING:
    import uvicorn

    from modules.app import App


class LegacyServer:
    """Serves both ports from one thread; `close` ends it."""

    def __init__(self, app: App, host: str) -> None:
        """Raises UserError where a port is taken."""
        import uvicorn

        ports = (app.options.api_blocking_port, app.options.api_streaming_port)
        self._listeners = [_listen(host, port) for port in ports]
        self.ports = [listener.getsockname()[1] for listener in self._listeners]
        config = uvicorn.Config(
            build(app), log_level="warning", access_log=False, timeout_graceful_shutdown=2, ws="websockets-sansio"
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
        for listener in self._listeners:
            listener.close()


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(
            f"Port {port} for the API of 2023 cannot be used ({error.strerror}). "
            "Choose others with --api-blocking-port and --api-streaming-port."
        ) from None
    return listener
