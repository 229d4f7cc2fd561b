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
        secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
        response.set_cookie(COOKIE, cookie, max_age=COOKIE_SECONDS, httponly=True, samesite="lax", secure=secure)
        return response

    @routes.post("/logout")
    def log_out() -> Response:
        response = RedirectResponse("./login", status_code=303)
        response.delete_cookie(COOKIE)
        return response

    return routes


class LoginGate:
    """ASGI middleware: lets people with a valid cookie pass; sends browsers to the login, and tells programs 401."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
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
