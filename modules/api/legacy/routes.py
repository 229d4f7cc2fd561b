"""The routes of July 2023: /api/v1/generate, chat, model, token-count, stop-stream, and two websockets."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from modules.api import common, errors, guard, limits
from modules.api.auth import administrator, key_of_api
from modules.api.common import note_ignored
from modules.api.forwarded import Forwarded
from modules.api.legacy.request import chat_request, ignored, text_request
from modules.api.progress import Progress
from modules.api.streaming import close_all, merged, open_streams, unless_gone, until_gone
from modules.errors import UserError
from modules.generation.leased_model import LeasedModel
from modules.generation.stream import EventStream
from modules.generation.types import GenerationRequest
from modules.services.workspace import Workspace

if TYPE_CHECKING:
    from modules.app import App


def build(app: App) -> FastAPI:
    """The web application for both ports of 2023: they differ in number alone."""
    web = FastAPI(title="Textloom, API of July 2023", docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(web)
    common.install(web, app)
    web.add_middleware(limits.PathLimit)
    web.add_middleware(limits.BodyLimit)
    web.add_middleware(guard.SiteGuard)
    if guard.is_private(app.options):
        web.add_middleware(guard.HostGuard)
    web.add_middleware(Forwarded, proxies=app.options.trusted_networks)
    dialect = Dialect()
    web.include_router(_blocking(app, dialect))
    web.include_router(_streaming(app, dialect))
    return web


class Dialect:
    """Replies for clients of 2023. Their Stop ends what this API began, and nobody else's replies."""

    def __init__(self) -> None:
        self._running: set[EventStream] = set()

    async def begin(self, model: LeasedModel, request: GenerationRequest) -> EventStream:
        """A reply of the model that the request was built for; `pieces` reads it. Raises UserError."""
        (stream,) = await open_streams(model, [request])
        self._running.add(stream)
        return stream

    async def pieces(self, stream: EventStream, client: HTTPConnection) -> AsyncGenerator[str]:
        """The reply as it comes. Raises UserError."""
        try:
            note_ignored(client, [f"json_schema.{place}" for place in stream.ignored])
            progress = Progress()
            async for _, events in merged([stream]):
                text, _ = progress.take(events)
                if text:
                    yield text
        finally:
            self._running.discard(stream)
            stream.close()

    async def whole(self, stream: EventStream, client: HTTPConnection) -> str:
        return "".join([piece async for piece in self.pieces(stream, client)])

    def stop(self) -> None:
        close_all(list(self._running))


def _blocking(app: App, dialect: Dialect) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", dependencies=[Depends(key_of_api(app.access))])

    @routes.post("/generate")
    async def generate(request: Request, body: dict[str, Any]) -> Response:
        note_ignored(request, ignored(body, chat=False, strict=app.options.strict_api))
        workspace = Workspace(app, app.access.require_api(request))
        await app.manager.ready()

        async def answer() -> Response:
            with app.manager.lease() as model:
                wanted = await run_in_threadpool(text_request, workspace, body)
                stream = await dialect.begin(model, wanted)
            return JSONResponse({"results": [{"text": await dialect.whole(stream, request)}]})

        return await unless_gone(request, answer())

    @routes.post("/chat")
    async def chat(request: Request, body: dict[str, Any]) -> Response:
        note_ignored(request, ignored(body, chat=True, strict=app.options.strict_api))
        workspace = Workspace(app, app.access.require_api(request))
        await app.manager.ready()

        async def answer() -> Response:
            with app.manager.lease() as model:
                wanted = await run_in_threadpool(chat_request, workspace, model, body)
                stream = await dialect.begin(model, wanted.request)
            return JSONResponse({"results": [{"history": wanted.history(await dialect.whole(stream, request))}]})

        return await unless_gone(request, answer())

    @routes.post("/stop-stream")
    def stop_stream() -> dict[str, str]:
        dialect.stop()
        return {"results": "success"}

    @routes.post("/token-count")
    def count_tokens(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        note_ignored(request, ignored(body, chat=False, strict=app.options.strict_api))
        wanted = text_request(Workspace(app, app.access.require_api(request)), body)
        with app.manager.lease(wait=True) as model:
            return {"results": [{"tokens": len(model.tokenize(str(wanted.prompt)))}]}

    @routes.get("/model")
    def model_name() -> dict[str, str]:
        return {"result": app.manager.status.name or "None"}

    @routes.post("/model")
    def change_model(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        return {"result": _model_action(app, request, body)}

    return routes


def _model_action(app: App, request: Request, body: dict[str, Any]) -> Any:
    action = body.get("action", "")
    if action == "list":
        return [spec.name for spec in app.models.all()]
    if action in ("load", "unload"):
        models = administrator(app, request).models
        if body.get("args") or body.get("settings"):
            raise UserError("This API cannot change options of the server. Use /v1/internal/model/load.", param="args")
        if action == "load":
            models.load(str(body.get("model_name", "")))
        else:
            models.unload()
    elif action != "info":
        raise UserError("'action' must be info, list, load or unload.", param="action")
    model = app.manager.loaded
    return {
        "model_name": model.name if model is not None else "None",
        "lora_names": list(model.adapters) if model is not None else [],
        "context_length": model.context_length if model is not None else None,
    }


def _streaming(app: App, dialect: Dialect) -> APIRouter:
    routes = APIRouter(prefix="/api/v1")

    @routes.websocket("/stream")
    async def stream(socket: WebSocket) -> None:
        await _serve_socket(app, dialect, socket, chat=False)

    @routes.websocket("/chat-stream")
    async def chat_stream(socket: WebSocket) -> None:
        await _serve_socket(app, dialect, socket, chat=True)

    return routes


async def _serve_socket(app: App, dialect: Dialect, socket: WebSocket, *, chat: bool) -> None:
    """Answer one request after the other, until the client goes."""
    await socket.accept()
    try:
        workspace = Workspace(app, app.access.require_api(socket))
        while True:
            body = json.loads(await socket.receive_text())
            if not isinstance(body, dict):
                raise UserError("Send a JSON object.")
            if not await _answer_socket(app, dialect, socket, workspace, body, chat):
                return
    except WebSocketDisconnect:
        pass
    except (UserError, ValueError) as error:
        told = error if isinstance(error, UserError) else UserError("The message is not valid JSON.")
        await socket.send_json(errors.body_of_exception(told)[1])
        await socket.close(1008)


async def _answer_socket(
    app: App, dialect: Dialect, socket: WebSocket, workspace: Workspace, body: dict[str, Any], chat: bool
) -> bool:
    """Send one reply; whether the client is still there."""
    note_ignored(socket, ignored(body, chat=chat, strict=app.options.strict_api))
    await app.manager.ready()

    async def send() -> bool:
        said, number = "", 0
        with app.manager.lease() as model:
            wanted = await run_in_threadpool(chat_request, workspace, model, body) if chat else None
            request = wanted.request if wanted is not None else await run_in_threadpool(text_request, workspace, body)
            stream = await dialect.begin(model, request)
        async with aclosing(dialect.pieces(stream, socket)) as pieces:
            async for piece in pieces:
                said += piece
                told: dict[str, Any] = {"history": wanted.history(said)} if wanted is not None else {"text": piece}
                await socket.send_json({"event": "text_stream", "message_num": number, **told})
                number += 1
        await socket.send_json({"event": "stream_end", "message_num": number})
        return True

    return await until_gone(socket.receive, send()) is not None
