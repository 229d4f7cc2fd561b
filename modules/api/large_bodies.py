"""Long requests are read beside the event loop: a hundred thousand messages must not make everybody's streams stand still."""

from __future__ import annotations

import asyncio
import contextlib
import email.message
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from modules.access import Access

SMALL = 64 * 1024
"""Bytes that are read where they arrive: it takes less than to ask a thread."""


def route_class(access: Access) -> type[APIRoute]:
    """FastAPI's route, which gets a long body as the model that it would have made of it. Strangers' bodies are not read."""

    class LargeBodyRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            model = getattr(getattr(self.body_field, "field_info", None), "annotation", None)
            if not (isinstance(model, type) and issubclass(model, BaseModel)):
                return handle

            async def read_beside(request: Request) -> Response:
                if _may_be_long(request) and _is_json(request):
                    await asyncio.to_thread(access.require_api, request)
                    if len(await request.body()) > SMALL:
                        with contextlib.suppress(UnicodeDecodeError, RecursionError):  # FastAPI tells them as what they are
                            request._json = await asyncio.to_thread(_read, model, await request.body())
                return await handle(request)

            return read_beside

    return LargeBodyRoute


def _may_be_long(request: Request) -> bool:
    told = request.headers.get("content-length", "")
    return not told.isdecimal() or int(told) > SMALL


def _is_json(request: Request) -> bool:
    """As FastAPI decides it."""
    header = email.message.Message()
    header["content-type"] = request.headers.get("content-type", "")
    kind = header.get_content_subtype()
    return header.get_content_maintype() == "application" and (kind == "json" or kind.endswith("+json"))


def _read(model: type[BaseModel], data: bytes) -> Any:
    """What FastAPI would make of a body. Raises what it raises."""
    value = _parsed(data)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors(include_url=False)]
        raise RequestValidationError(problems, body=value) from None


def _parsed(data: bytes) -> Any:
    """The value of JSON text. Pydantic's parser holds the interpreter for a fraction of the time of Python's, which has the last word."""
    with contextlib.suppress(ValueError):  # half of a surrogate pair, deep nesting, another encoding; or no JSON
        return from_json(data)
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error", "ctx": {"error": error.msg}}
        raise RequestValidationError([problem | {"input": {}}], body=error.doc) from None
