"""A port to listen on, or a sentence that names one that is free."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from modules.errors import UserError


def listen(host: str, port: int, advice: Callable[[int], str], *, queue: int = 2048) -> socket.socket:
    """A listening socket; port 0 takes any.

    Raises UserError where the port cannot be used, with `advice` for a free one, and where `host` is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Asyncio sends small answers at once (TCP_NODELAY) only where the socket says that it is TCP: 40 ms an answer otherwise.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(queue)
    except OSError as error:
        listener.close()
        with socket.socket(family, socket.SOCK_STREAM) as other, contextlib.suppress(OSError):
            other.bind((host, 0))
            free = other.getsockname()[1]
            raise UserError(
                f"Port {port} of {host} cannot be used ({error.strerror}). Port {free} is free: {advice(free)}"
            ) from None
        raise UserError(f"{host} is not an address of this machine: choose another --listen-host.") from None
    return listener
