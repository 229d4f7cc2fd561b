"""From where a request may come: names that this server answers to, and pages whose requests it takes."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from modules.api.errors import body_of
from modules.settings.addresses import is_loopback
from modules.settings.server import ServerOptions

READS = ("GET", "HEAD", "OPTIONS")
"""What changes nothing, for any of our routes and of Gradio's. No site can read the answers: they have no CORS headers."""

_OF_PROXIES = ("x-forwarded-for", "x-forwarded-proto", "x-real-ip", "via")


def is_private(options: ServerOptions) -> bool:
    """Whether only this machine is meant to reach the server, directly and without a proxy or tunnel."""
    if options.share or options.listen or options.root_path or options.trusted_proxies:
        return False
    return not options.listen_host or is_loopback(options.listen_host)


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
    return not name or is_loopback(name)


class SiteGuard:
    """ASGI middleware: what changes something, and every websocket, is refused where a page of another site asks for it.

    A browser sends such requests for any site, with the visitor's cookie and from inside of the network, and says so.
    Programs say nothing of a site; and what has a key is no such request, because no page can add one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        acts = scope["type"] == "websocket" or (scope["type"] == "http" and scope["method"] not in READS)
        if not acts or not is_of_another_site(headers := Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        sentence = (
            f"A page of another site{_named(headers)} asked for this, and in a browser only the page of this server may. "
            "Programs send a key, or no Origin header; a proxy in between must pass the Host header on."
        )
        await JSONResponse(body_of(sentence, 403, code="cross_site"), 403)(scope, receive, send)


def is_of_another_site(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of elsewhere made this request: Sec-Fetch-Site where it sends that, else Origin."""
    if headers.get("authorization", "").lower().startswith("bearer "):
        return False
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False
    place = _place(origin.partition("://")[2])
    hosts = {_place(host) for host in (headers.get("host", ""), *headers.get("x-forwarded-host", "").split(","))}
    if any(name in headers for name in _OF_PROXIES):  # many leave the port out of the Host that they pass on
        hosts |= {f"{host}:{place.rpartition(':')[2]}" for host in hosts if host and not host.rpartition(":")[2].isdigit()}
    return not place or place not in hosts


def _place(host: str) -> str:
    """Host and port as an Origin has them, without the port that its scheme implies."""
    name = host.strip().lower()
    return name.removesuffix(":80").removesuffix(":443")


def _named(headers: Mapping[str, str]) -> str:
    origin = headers.get("origin", "null")
    return "" if origin == "null" else f" ({origin[:200]})"
