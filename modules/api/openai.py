"""Everything below /v1: who may ask, the routes, and a clear word for what is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, Request
from starlette.exceptions import HTTPException
from starlette.routing import Match

from modules.api import administration, chat, completions, embeddings, internal, models, responses, training
from modules.api.auth import key_of_api

if TYPE_CHECKING:
    from modules.app import App


def router(app: App) -> APIRouter:
    """The API of `app`."""
    parts = [part.router(app) for part in _PARTS]
    known = [route for part in parts for route in part.routes]

    def nothing_here(request: Request, path: str) -> None:
        """The page would answer otherwise, which stands at / and takes every path."""
        fitting = [route for route in known if route.matches(request.scope)[0] == Match.PARTIAL]
        allowed = {method for route in fitting for method in getattr(route, "methods", ())}
        if allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
        raise HTTPException(404)

    routes = APIRouter(dependencies=[Depends(key_of_api(app.access))])
    for part in parts:
        routes.include_router(part)
    routes.add_api_route("/v1/{path:path}", nothing_here, methods=_METHODS, include_in_schema=False)
    return routes


_PARTS = (chat, completions, responses, models, embeddings, internal, administration, training)
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
