"""Long requests are read beside the event loop: a hundred thousand messages must not make everybody's streams stand still."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

SMALL = 64 * 1024
"""Bytes that are read where they arrive: it takes less than to ask a thread."""


class LargeBodyRoute(APIRoute):
    """FastAPI's route, which gets a long body as the model that it would have made of it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        model = getattr(getattr(self.body_field, "field_info", None), "annotation", None)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return handle

        async def read_beside(request: Request) -> Response:
            if len(await request.body()) > SMALL and "json" in request.headers.get("content-type", ""):
                with contextlib.suppress(ValueError, RecursionError):  # what is no JSON is FastAPI's to tell
                    request._json = await asyncio.to_thread(_read, model, await request.body())
            return await handle(request)

        return read_beside


def _read(model: type[BaseModel], data: bytes) -> Any:
    """What FastAPI would make of a body. Raises what it raises."""
    value = json.loads(data)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors(include_url=False)]
        raise RequestValidationError(problems, body=value) from None
