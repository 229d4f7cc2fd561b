"""The login page, and the gate that sends strangers to it. Only there when the server asks for logins."""

from __future__ import annotations

import html
from pathlib import Path
from string import Template

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from modules.access import COOKIE, COOKIE_SECONDS, Access
from modules.errors import NotAllowed

OPEN = ("/login", "/health", "/v1", "/metrics", "/openapi.json")
"""What needs no login: the login itself, and what checks keys by its own rules."""
_WORDS = {
    "en": {"title": "Log in to Textloom", "user": "User", "password": "Password", "enter": "Log in"},
    "zh": {"title": "登录 Textloom", "user": "用户名", "password": "密码", "enter": "登录"},
}


def _page(request: Request, message: str = "") -> HTMLResponse:
    language = "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"
    template = Template((Path(__file__).parent / "static" / "login.html").read_text(encoding="utf-8"))
    text = template.substitute(language=language, message=html.escape(message), **_WORDS[language])
    return HTMLResponse(text, status_code=401 if message else 200)


def _set_cookie(request: Request, response: Response, cookie: str, seconds: int) -> None:
    """0 seconds: the browser forgets it. Within a frame of another site, a notebook's for one, browsers keep a cookie
    only where it says so, each site's by itself, and let it say so on https alone."""
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    site = "none" if secure else "lax"
    response.set_cookie(COOKIE, cookie, max_age=seconds, httponly=True, samesite=site, secure=secure)
    if secure:
        response.headers["set-cookie"] += "; Partitioned"  # http.cookies does not know the word before Python 3.14


def router(access: Access) -> APIRouter:
    """GET and POST /login, POST /logout."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/login")
    def show(request: Request) -> Response:
        if access.user_of(request) is not None:
            return RedirectResponse("./", status_code=303)
        return _page(request)

    @routes.post("/login")
    def log_in(request: Request, user: str = Form(""), password: str = Form("")) -> Response:
        try:
            cookie = access.log_in(user.strip(), password, request.client.host if request.client else "")
        except NotAllowed as error:
            return _page(request, error.message)
        response = RedirectResponse("./", status_code=303)
        _set_cookie(request, response, cookie, COOKIE_SECONDS)
        return response

    @routes.post("/logout")
    def log_out(request: Request) -> Response:
        response = RedirectResponse("./login", status_code=303)
        _set_cookie(request, response, "", 0)
        return response

    return routes


class LoginGate:
    """ASGI middleware: lets people with a valid cookie pass; sends browsers to the login, and tells programs 401.

    What another site's page makes a visitor's browser send is refused, for the cookie goes with it; a key is nothing that it has.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        if _is_of_another_site(connection):
            error = {
                "message": "Only the page of this server may ask for this in a browser. Programs send a key.",
                "type": "invalid_request_error",
                "param": None,
                "code": "cross_site",
            }
            await JSONResponse({"error": error}, status_code=403)(scope, receive, send)
            return
        if self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http" and "text/html" in connection.headers.get("accept", ""):
            root = scope.get("root_path", "")
            await RedirectResponse(f"{root}/login", status_code=303)(scope, receive, send)
        else:
            error = {"message": "Log in first.", "type": "authentication_error", "param": None, "code": "not_logged_in"}
            await JSONResponse({"error": error}, status_code=401)(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        is_open = any(path == start or path.startswith(start + "/") for start in OPEN)
        return is_open or self._access.user_of(HTTPConnection(scope)) is not None


def _is_of_another_site(connection: HTTPConnection) -> bool:
    """Whether a page of elsewhere wants something changed, with no more than the visitor's cookie."""
    acts = connection.scope.get("method") not in ("GET", "HEAD", "OPTIONS")
    return (
        acts
        and connection.headers.get("sec-fetch-site") in ("cross-site", "same-site")
        and "authorization" not in connection.headers
    )
