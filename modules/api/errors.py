"""Every refusal in OpenAI's shape: {"error": {message, type, param, code}} with a status that fits."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Scope

from modules.api import request_id
from modules.errors import DiskFull, NotAllowed, NotFound, ReadOnly, TooManyTries, UserError
from modules.settings.paths import path_of

log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorReply, "description": "The request is wrong; the message says what to change."},
    "5XX": {"model": ErrorReply, "description": "The server cannot do it right now; the message says why."},
}
"""For `responses=` of every operation, so that /openapi.json tells the truth."""


class ModelNotFound(NotFound):
    code = "model_not_found"


def body_of(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The JSON of one refusal."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of_exception(error: BaseException) -> tuple[int, dict[str, Any]]:
    """(status, JSON) for whatever went wrong; the details of a bug go to the log alone."""
    if isinstance(error, UserError):
        return error.status, body_of(error.message, error.status, param=error.param, code=error.code)
    log.error("unexpected error", exc_info=error)
    return 500, body_of("Something broke inside the server. Its log has the details.", 500, code="internal_error")


def install_for_users(web: FastAPI) -> None:
    """Answer what a user can mend in OpenAI's shape; for an application of somebody else's, too."""

    @web.exception_handler(UserError)
    async def refuse(request: Request, error: UserError) -> JSONResponse:
        status, body = body_of_exception(error)
        headers = {"Retry-After": str(error.seconds)} if isinstance(error, TooManyTries) else {"WWW-Authenticate": "Bearer"}
        return JSONResponse(body, status, headers=headers if isinstance(error, NotAllowed) else None)

    @web.exception_handler(OSError)
    async def refuse_write(request: Request, error: OSError) -> JSONResponse:
        where = error.filename or "this server"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told = DiskFull(where)
        elif error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            told = ReadOnly(where, error.strerror)
        else:
            raise error
        status, body = body_of_exception(told)
        return JSONResponse(body, status)


def install(web: FastAPI) -> None:
    """Answer every error of `web`'s own routes in OpenAI's shape."""

    install_for_users(web)

    @web.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> JSONResponse:
        status, body = _body_of_validation(request, error)
        return JSONResponse(body, status)

    @web.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> JSONResponse:
        body = body_of(_route_sentence(request, error), error.status_code, code=_ROUTE_CODES.get(error.status_code))
        return JSONResponse(body, error.status_code, headers=error.headers)

    @web.exception_handler(Exception)
    async def apologise(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again after this, and uvicorn writes the traceback: once is enough.
        body = body_of("Something broke inside the server. Its log has the details.", 500, code="internal_error")
        return JSONResponse(body, 500, headers=request_id.header_of(request.scope))


def is_of_api(scope: Scope) -> bool:
    """Whether a request is for the API, and not for the page or its files."""
    return path_of(scope).startswith(("/v1/", "/api/"))


_ROUTE_CODES = {404: "unknown_url", 405: "method_not_allowed"}


def _route_sentence(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"There is no {request.url.path} here. /openapi.json lists what there is."
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"{request.url.path} does not answer {request.method}. Use {allowed}."
    if error.status_code == 400:
        return "The body cannot be read as JSON. Send UTF-8 text that is valid JSON."
    return str(error.detail)


def _body_of_validation(request: Request, error: RequestValidationError) -> tuple[int, dict[str, Any]]:
    problems = error.errors()
    kind = request.headers.get("content-type", "")
    if isinstance(error.body, bytes) and "json" not in kind:
        said = f"not {kind}" if kind else "which is missing"
        return 415, body_of(
            f"Send JSON, with the header Content-Type: application/json, {said}.", 415, code="wrong_content_type"
        )
    if problems[0]["type"] == "json_invalid":
        reason, place = problems[0]["ctx"]["error"], problems[0]["loc"][-1]
        return 400, body_of(f"The body is not valid JSON: {reason} at character {place}.", 400, code="invalid_json")
    message, param = describe(problems, _body_model(request))
    return 400, body_of(message, 400, param=param, code="invalid_value")


def _body_model(request: Request) -> type[BaseModel] | None:
    field = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(field, "field_info", None), "annotation", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def describe(problems: Iterable[Mapping[str, Any]], model: type[BaseModel] | None = None) -> tuple[str, str | None]:
    """(sentence, field at fault) for pydantic's list of problems; `model` is what the names should have been from.

    Of the alternatives of a union the one that got furthest is what the sender meant.
    """
    problem = max(problems, key=lambda item: (len(item["loc"]), not item["type"].endswith(("_type", "_parsing"))))
    path = _path(problem["loc"], model)
    where = ".".join(path)
    if not where and problem["type"] == "value_error":
        first = _reason(problem).split(" ", 1)[0]
        return f"{_reason(problem)}.", first if model is not None and first in model.model_fields else None
    if not where:
        return "Send a JSON object as the body.", None
    match problem["type"]:
        case "missing":
            return f"'{where}' is missing.", where
        case "extra_forbidden":
            return f"There is no field '{where}'. Leave it out, or see /openapi.json for those there are.", where
        case "union_tag_invalid":
            return f"'{where}' must have the type {problem['ctx']['expected_tags']}, not '{problem['ctx']['tag']}'.", where
        case "too_short" | "too_long":
            least, most = problem["ctx"].get("min_length"), problem["ctx"].get("max_length")
            return f"'{where}' must have {f'at least {least}' if least else f'at most {most}'} items.", where
        case "value_error" | "assertion_error":
            return f"'{where}': {_reason(problem)}.", where
        case _:
            return f"'{where}' {_reason(problem)}{_shown(problem.get('input'))}.", where


def _path(location: Sequence[Any], model: Any) -> list[str]:
    """The names and indices of a location within `model`, without those of alternatives and of the tags that choose them."""
    path: list[str] = []
    kind: Any = model
    for part in location:
        if not path and part in ("body", "query", "path"):
            continue
        chosen = _chosen(kind, part)
        if chosen is not None:
            kind = chosen
        elif not _is_alternative(part):
            path.append(str(part))
            kind = _within(kind, part)
    return path


def _chosen(kind: Any, part: Any) -> Any:
    """The member of a union that a part of a location names by its tag or its own name; None where it names none."""
    for member in _members(kind):
        tags = get_args(member.model_fields["type"].annotation) if _is_model(member) and "type" in member.model_fields else ()
        if len(_members(kind)) > 1 and (part in tags or part == getattr(member, "__name__", None) or _is_list(member, part)):
            return member
    return None


def _members(kind: Any) -> list[Any]:
    """What a type may be, besides None."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [member for option in get_args(kind) for member in _members(option) if member is not type(None)]
    return [kind]


def _within(kind: Any, part: Any) -> Any:
    """The type of a field or an item; None where it is not known."""
    (kind, *others) = _members(kind)
    if others:
        return None
    if isinstance(part, int):
        return next(iter(get_args(kind)), None)
    if not _is_model(kind):
        return None
    fields = kind.model_fields
    return next((info.annotation for name, info in fields.items() if part in (name, info.alias)), None)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_list(kind: Any, part: Any) -> bool:
    return get_origin(kind) in (list, tuple) and isinstance(part, str) and part.startswith(("list[", "tuple["))


def _is_alternative(part: Any) -> bool:
    """Whether a part of pydantic's location names a member of a union rather than a field of the request."""
    return isinstance(part, str) and (part in _TYPES or "[" in part or part[:1].isupper())


_TYPES = {"str", "int", "float", "bool", "constrained-int", "constrained-str", "constrained-float"}


def _reason(problem: Mapping[str, Any]) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    text = text.replace("Input should", "must", 1)
    return text.replace("a valid tuple", "a list").replace("a valid dictionary", "a JSON object")


def shortened(text: str) -> str:
    """What a message quotes of a longer text."""
    return text if len(text) <= 60 else f"{text[:57]}…"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, dict | list | tuple):
        return ""
    return f", not {shortened(json.dumps(value, default=str))}"
