"""Base of all services: the application, and the user they act for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from modules.app import App
from modules.chats.replies import OwnedReplies
from modules.chats.store import ChatHistory

Other = TypeVar("Other", bound="Service")


@dataclass(frozen=True)
class Service:
    """Use cases of one user. A service that needs another makes it: `self.of(Preferences)`.

    admin_key: whether the request came with the server's admin key, which administers under any name.
    """

    app: App
    owner: str
    admin_key: bool = False

    def of(self, kind: type[Other]) -> Other:
        """Another service, for the same user."""
        return kind(self.app, self.owner, self.admin_key)

    @property
    def is_admin(self) -> bool:
        """Whether models, training and settings may be changed."""
        return self.admin_key or self.app.access.is_admin(self.owner)

    def require_admin(self) -> None:
        """Raises Forbidden where models, training and settings may not be changed."""
        if not self.admin_key:
            self.app.access.require_admin(self.owner)

    @cached_property
    def history(self) -> ChatHistory:
        """The chats, messages, pictures and preferences of the user."""
        return self.app.store.for_owner(self.owner)

    @cached_property
    def replies(self) -> OwnedReplies:
        """The replies of the user that are being written."""
        return self.app.replies.for_owner(self.owner)
