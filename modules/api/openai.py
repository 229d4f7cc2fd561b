"""Everything below /v1: who may ask, the routes, and a clear word for what is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.routing import Match

from modules.api import chat, completions, embeddings, internal, models

if TYPE_CHECKING:
    from modules.app import App

BEARER = HTTPBearer(auto_error=False, description="The server's --api-key, or user:password of a login.")


def router(app: App) -> APIRouter:
    """The API of `app`."""

    def need_key(request: Request, _: HTTPAuthorizationCredentials | None = Depends(BEARER)) -> None:  # noqa: B008
        app.access.require_api(request)

    parts = [part.router(app) for part in (chat, completions, models, embeddings, internal)]
    parts.append(internal.administration(app))
    known = [route for part in parts for route in part.routes]

    def nothing_here(request: Request, path: str) -> None:
        """The page would answer otherwise, which stands at / and takes every path."""
        fitting = [route for route in known if route.matches(request.scope)[0] == Match.PARTIAL]
        allowed = {method for route in fitting for method in getattr(route, "methods", ())}
        if allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
        raise HTTPException(404)

    routes = APIRouter(dependencies=[Depends(need_key)])
    for part in parts:
        routes.include_router(part)
    routes.add_api_route("/v1/{path:path}", nothing_here, methods=_METHODS, include_in_schema=False)
    return routes


_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
