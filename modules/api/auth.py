"""Keys as dependencies of routes, so that /openapi.json knows of them too."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from modules.access import Access

_BEARER = HTTPBearer(auto_error=False, description="The server's --api-key, or user:password of a login.")


def key_of_api(access: Access) -> Callable[..., None]:
    """For `Depends`: whoever may use the API. Raises NotAllowed."""

    def need_key(request: Request, _: HTTPAuthorizationCredentials | None = Depends(_BEARER)) -> None:  # noqa: B008
        access.require_api(request)

    return need_key


def key_of_admin(access: Access) -> Callable[..., None]:
    """For `Depends`: whoever may administer. Raises NotAllowed and Forbidden."""

    def need_admin(request: Request) -> None:
        access.require_api_admin(request)

    return need_admin
