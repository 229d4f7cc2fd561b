"""Which address a request is for, whatever path a proxy shows the server under."""

from __future__ import annotations

from starlette.types import Scope


def path_of(scope: Scope) -> str:
    """The path below --root-path; "" for what is no HTTP request."""
    return scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
