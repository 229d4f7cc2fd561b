"""Workspace: everything that one user can do, made once for each request."""

from __future__ import annotations

from modules.services.base import Service


class Workspace(Service):
    """The entry to all services of one user; each is a property: `workspace.models.load(name)`."""
