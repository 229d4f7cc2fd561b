"""Workspace: everything that one user can do, made once for each request."""

from __future__ import annotations

from modules.services.backup import Backup
from modules.services.base import Service
from modules.services.characters import Characters
from modules.services.chats import Chats
from modules.services.compare import Compare
from modules.services.notebook import Notebook
from modules.services.preferences import Preferences
from modules.services.prompt_preview import PromptPreview
from modules.services.rerun import Rerun
from modules.services.tokens import Tokens
from modules.services.undo import UndoHistory


class Workspace(Service):
    """The entry to all services of one user; each is a property: `workspace.models.load(name)`."""

    @property
    def is_admin(self) -> bool:
        return self.app.access.is_admin(self.owner)

    @property
    def backup(self) -> Backup:
        return Backup(self.app, self.owner)

    @property
    def characters(self) -> Characters:
        return Characters(self.app, self.owner)

    @property
    def chats(self) -> Chats:
        return Chats(self.app, self.owner)

    @property
    def compare(self) -> Compare:
        return Compare(self.app, self.owner)

    @property
    def notebook(self) -> Notebook:
        return Notebook(self.app, self.owner)

    @property
    def preferences(self) -> Preferences:
        return Preferences(self.app, self.owner)

    @property
    def prompt_preview(self) -> PromptPreview:
        return PromptPreview(self.app, self.owner)

    @property
    def rerun(self) -> Rerun:
        return Rerun(self.app, self.owner)

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.app, self.owner)

    @property
    def undo(self) -> UndoHistory:
        return UndoHistory(self.app, self.owner)
