"""Keys as dependencies of routes, so that /openapi.json knows of them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from modules.access import Access
from modules.services.workspace import Workspace

if TYPE_CHECKING:
    from modules.app import App

_BEARER = HTTPBearer(auto_error=False, description="The server's --api-key, or user:password of a login.")


def key_of_api(access: Access) -> Callable[..., None]:
    """For `Depends`: whoever may use the API. Raises NotAllowed."""

    def need_key(request: Request, _: HTTPAuthorizationCredentials | None = Depends(_BEARER)) -> None:  # noqa: B008
        access.require_api(request)

    return need_key


def key_of_admin(app: App) -> Callable[..., None]:
    """For `Depends`: whoever may administer, with the workspace of their name. Raises NotAllowed and Forbidden."""

    def need_admin(request: Request) -> None:
        request.state.workspace = administrator(app, request)

    return need_admin


def administrator(app: App, request: Request) -> Workspace:
    """The workspace of whoever may administer. Raises NotAllowed and Forbidden."""
    return Workspace(app, app.access.require_api_admin(request), admin_key=True)
