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
from modules.errors import DiskFull, NotAllowed, TooManyTries
from modules.logins.sessions import BROWSER_SECONDS

OPEN = ("/login", "/health", "/v1", "/metrics", "/openapi.json")
"""What needs no login: the login itself, and what checks keys by its own rules."""
_WORDS = {
    "en": {
        "title": "Log in to Textloom",
        "user": "User",
        "password": "Password",
        "enter": "Log in",
        "wrong": "User or password is wrong.",
        "wait": "Too many wrong passwords from here. Wait {seconds} s before the next try.",
        "full": "The disk of this server is full, so nobody can log in. Make room there, then try again.",
    },
    "zh": {
        "title": "登录 Textloom",
        "user": "用户名",
        "password": "密码",
        "enter": "登录",
        "wrong": "用户名或密码错误。",
        "wait": "此处输错密码的次数过多，请等待 {seconds} 秒后再试。",
        "full": "服务器磁盘已满，暂时无法登录。请清理出空间后再试。",
    },
}
BROWSER = "textloom-browser"
"""The cookie by which a browser is known again: tries of strangers at the same address do not delay it."""


def _page(request: Request, refusal: NotAllowed | DiskFull | None = None) -> HTMLResponse:
    language = "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"
    words = _WORDS[language]
    message, headers = "", {}
    if isinstance(refusal, TooManyTries):
        message, headers = words["wait"].format(seconds=refusal.seconds), {"Retry-After": str(refusal.seconds)}
    elif refusal is not None:
        message = words["full" if isinstance(refusal, DiskFull) else "wrong"]
    template = Template((Path(__file__).parent / "static" / "login.html").read_text(encoding="utf-8"))
    text = template.substitute(language=language, message=html.escape(message), **words)
    return HTMLResponse(text, status_code=refusal.status if refusal else 200, headers=headers)


def _set_cookie(request: Request, response: Response, name: str, cookie: str, seconds: int) -> None:
    """0 seconds: the browser forgets it. Within a frame of another site, a notebook's for one, browsers keep a cookie
    only where it says so, each site's by itself, and let it say so on https alone."""
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    site = "none" if secure else "lax"
    response.set_cookie(name, cookie, max_age=seconds, httponly=True, samesite=site, secure=secure)
    if secure:  # http.cookies does not know the word before Python 3.14
        key, value = response.raw_headers[-1]
        response.raw_headers[-1] = key, value + b"; Partitioned"


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
        if not access.logins:
            return RedirectResponse("./", status_code=303)
        user, browser = user.strip(), request.cookies.get(BROWSER, "")
        address = request.client.host if request.client else ""
        try:
            cookie = access.log_in(user, password, address, browser=browser)
        except (NotAllowed, DiskFull) as refusal:
            return _page(request, refusal)
        response = RedirectResponse("./", status_code=303)
        _set_cookie(request, response, COOKIE, cookie, COOKIE_SECONDS)
        _set_cookie(request, response, BROWSER, access.browser_of(user, browser), BROWSER_SECONDS)
        return response

    @routes.post("/logout")
    def log_out(request: Request) -> Response:
        access.log_out(request)
        response = RedirectResponse("./login", status_code=303)
        _set_cookie(request, response, COOKIE, "", 0)
        return response

    return routes


class LoginGate:
    """ASGI middleware: lets people with a valid cookie pass; sends browsers to the login, and tells programs 401."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
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
