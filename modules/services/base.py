"""Base of all services: the application, and the user they act for."""

from __future__ import annotations

from dataclasses import dataclass

from modules.app import App


@dataclass(frozen=True)
class Service:
    """Use cases of one user. A service that needs another makes it: `Preferences(self.app, self.owner)`."""

    app: App
    owner: str
