"""One web application: the API under /v1, the page at /."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from modules.api import common, errors, gradio_bodies, guard, limits, metrics, openai, request_id
from modules.api.forwarded import Forwarded
from modules.app import VERSION, App


def build(app: App) -> FastAPI:
    """The whole web application. Importing gradio takes seconds; without the page it is not imported."""
    web = FastAPI(
        title="Textloom",
        version=VERSION,
        summary="Language models on your own hardware, by OpenAI's protocol.",
        docs_url="/v1/docs",
        openapi_url="/openapi.json",
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    errors.install(web)
    common.install(web, app)
    metrics.install(web, app)

    @web.get("/health", tags=["server"], responses={503: {"description": "A model is being loaded."}})
    async def health() -> JSONResponse:
        """200 when the server answers and no model is being loaded; 503 while one is."""
        status = app.manager.status
        loading = status.state == "loading"
        body = {"status": "loading" if loading else "ok", "model": status.name, "error": status.error}
        return JSONResponse(body, status_code=503 if loading else 200)

    web.include_router(openai.router(app))
    larger = None
    if not app.options.nowebui:
        _within_a_loop(lambda: _add_page(web, app))
        from modules.api.page.chats import LARGER_BODIES
        from modules.ui import uploads

        larger = {**LARGER_BODIES, uploads.ADDRESS: 2 * uploads.LARGEST}  # the limit of uploads itself speaks first
    web.add_middleware(limits.PathLimit)
    web.add_middleware(limits.BodyLimit, larger=larger)
    web.add_middleware(guard.SiteGuard)
    if guard.is_private(app.options):
        web.add_middleware(guard.HostGuard)
    if not app.options.nowebui:
        _speak_their_language(web, app)
    if app.options.root_path:
        web.add_middleware(OnePrefix)
    web.add_middleware(Forwarded, proxies=app.options.trusted_networks)
    web.add_middleware(request_id.RequestId)  # outermost: the others pass copies of the scope on
    return web


class OnePrefix:
    """ASGI middleware: takes the path of --root-path from proxies that cut it off, as uvicorn expects, and from those that leave it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        prefix = scope.get("root_path", "")
        if prefix and f"{scope['path']}/".startswith(f"{prefix}{prefix}/"):  # uvicorn has put it before the whole path
            raw = scope.get("raw_path") or b""
            scope = {**scope, "path": scope["path"].removeprefix(prefix), "raw_path": raw.removeprefix(prefix.encode())}
        await self._app(scope, receive, send)


def _speak_their_language(web: FastAPI, app: App) -> None:
    """Outside of all that may refuse a request of the page."""
    from modules.access import ANYONE
    from modules.i18n import sentences
    from modules.services.preferences import Preferences

    def chosen_by(connection: HTTPConnection) -> str:
        return Preferences(app, app.access.user_of(connection) or ANYONE).page.language

    web.add_middleware(sentences.PageLanguage, chosen_by=chosen_by)


def _import_gradio() -> ModuleType:
    """Gradio writes type stubs for all its components beside them at every import, half of its time, except for what has no file."""
    find = inspect.getfile

    def no_component(of: Any) -> str:
        if type(of).__name__ == "ComponentMeta":
            raise OSError("no stubs")
        return find(of)

    inspect.getfile = no_component
    try:
        import gradio
    finally:
        inspect.getfile = find
    return gradio


def _within_a_loop(make: Callable[[], None]) -> None:
    """Gradio opens an event loop for each of its locks where none is running, and closes none of them."""

    async def made() -> None:
        make()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(made())
    else:
        make()


def _stream_name(app: App, owner: str) -> str:
    """Another one for each user and each start of the server: tabs that were open before speak for themselves."""
    return hashlib.sha256(f"{app.started} {owner}".encode()).hexdigest()[:16]


def _add_page(web: FastAPI, app: App) -> None:
    gradio = _import_gradio()
    from gradio.route_utils import CustomCORSMiddleware

    from modules.access import ANYONE
    from modules.api.page import chats
    from modules.services.preferences import Preferences
    from modules.ui import assets, login, page, page_head, uploads

    web.include_router(login.router(app.access))
    web.include_router(chats.router(app))
    web.add_middleware(assets.KeptAssets)
    web.add_middleware(gradio_bodies.ReadableJson)
    web.add_middleware(
        page_head.EarlyHead,
        page_of=lambda connection: Preferences(app, app.access.user_of(connection) or ANYONE).page,
        opens_on=page.opens_on(app),
        stream_of=lambda connection: _stream_name(app, app.access.user_of(connection) or ANYONE),
    )
    web.add_middleware(uploads.UploadRoom, folder=uploads.prepare(app.data))
    if app.access.logins:
        web.add_middleware(login.LoginGate, access=app.access)
    gradio.mount_gradio_app(
        web,
        page.build(app),
        path="/",
        auth_dependency=app.access.user_of,
        ssr_mode=False,
        run_history=False,
        show_error=True,
        footer_links=["settings"],
        **page.mount_options(),
    )
    mounted: Any = web.router.routes[-1]
    # Each tab would hold a connection, of which browsers have six to a host, only to have its few values forgotten sooner.
    mounted.app.get_blocks().config["connect_heartbeat"] = False
    errors.install_for_users(mounted.app)
    # It lets the pages of other servers of this machine read with the visitor's cookie.
    mounted.app.user_middleware = [entry for entry in mounted.app.user_middleware if entry.cls is not CustomCORSMiddleware]
