"""What reverse proxies say of the requests that they pass on: who asks is believed only of proxies that the user named."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from modules.settings.addresses import Network, bare, is_loopback, parse

_DEFAULT_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


class Forwarded:
    """ASGI middleware in place of uvicorn's own, which believes everything that comes from 127.0.0.1, tunnels too.

    X-Forwarded-Proto is taken from this machine as well: it decides about links in the sender's own answer, no more.
    """

    def __init__(self, app: ASGIApp, proxies: Sequence[Network]) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope = self._before_the_proxy(scope)
        await self._app(scope, receive, send)

    def _before_the_proxy(self, scope: Scope) -> Scope:
        peer = scope["client"][0] if scope.get("client") else ""
        named = self._is_named(peer)
        if not named and not is_loopback(peer):
            return scope
        headers = Headers(scope=scope)
        changed = dict(scope)
        proto = headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
        if proto in ("http", "https"):
            changed["scheme"] = proto if scope["type"] == "http" else {"http": "ws", "https": "wss"}[proto]
        if named:
            if client := self._first_unnamed(headers.getlist("x-forwarded-for")):
                changed["client"] = (client, 0)
            changed["headers"] = _with_port(changed, headers)
        return changed

    def _is_named(self, host: str) -> bool:
        address = parse(host)
        return address is not None and any(address in network for network in self._proxies)

    def _first_unnamed(self, values: Sequence[str]) -> str:
        """Each proxy adds at the end whom it heard, so what stands before the last stranger may be his invention."""
        client = ""
        for entry in reversed(",".join(values).split(",")):
            address = parse(_without_port(entry.strip()))
            if address is None:
                break
            client = str(address)
            if not self._is_named(client):
                break
        return client


def _without_port(entry: str) -> str:
    if entry.startswith("["):
        return bare(entry.partition("]")[0] + "]")
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _with_port(scope: Scope, headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers with the port that the browser used, where the proxy told it apart from the name."""
    amended = MutableHeaders(raw=list(scope["headers"]))
    port = headers.get("x-forwarded-port", "").partition(",")[0].strip()
    if not port.isdigit() or port == _DEFAULT_PORTS.get(scope["scheme"]):
        return amended.raw
    for name in ("host", "x-forwarded-host"):
        host = headers.get(name, "").partition(",")[0].strip()
        if host and not host.rpartition(":")[2].isdigit():
            amended[name] = f"{host}:{port}"
    return amended.raw
