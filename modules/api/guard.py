"""A server for this machine alone answers to this machine's names alone: no web site can reach it through a name of its own."""

from __future__ import annotations

import ipaddress

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from modules.api.errors import body_of
from modules.settings.server import ServerOptions


def is_private(options: ServerOptions) -> bool:
    """Whether only this machine is meant to reach the server, directly and without a proxy or tunnel."""
    if options.share or options.listen or options.root_path:
        return False
    return options.listen_host in ("", "localhost", "::1") or options.listen_host.startswith("127.")


class HostGuard:
    """ASGI middleware against DNS rebinding: refuses requests whose Host header names another machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] in ("http", "websocket") else "localhost"
        if is_local(host):
            await self._app(scope, receive, send)
            return
        sentence = (
            f"This server is for its own machine alone and does not answer to the name {host!r}. "
            "Use http://127.0.0.1 or http://localhost, or start it with --listen or --root-path where others or a proxy come in."
        )
        await JSONResponse(body_of(sentence, 403, code="foreign_host"), 403)(scope, receive, send)


def is_local(host: str) -> bool:
    """Whether a Host header names this machine; an empty one comes from programs, never from browsers."""
    name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower().rstrip(".")
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
