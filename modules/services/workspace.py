"""Workspace: everything that one user can do, made once for each request."""

from __future__ import annotations

from modules.services.backup import Backup
from modules.services.base import Service
from modules.services.characters import Characters
from modules.services.chats import Chats
from modules.services.compare import Compare
from modules.services.datasets import Datasets
from modules.services.models import Models
from modules.services.notebook import NotebookTabs
from modules.services.preferences import Preferences
from modules.services.prompt_preview import PromptPreview
from modules.services.requests import RequestBuilder
from modules.services.rerun import Rerun
from modules.services.tokens import Tokens
from modules.services.training import Training
from modules.services.undo import UndoHistory


class Workspace(Service):
    """The entry to all services of one user; each is a property: `workspace.models.load(name)`."""

    @property
    def backup(self) -> Backup:
        return Backup(self.app, self.owner, self.admin_key)

    @property
    def characters(self) -> Characters:
        return Characters(self.app, self.owner, self.admin_key)

    @property
    def chats(self) -> Chats:
        return Chats(self.app, self.owner, self.admin_key)

    @property
    def compare(self) -> Compare:
        return Compare(self.app, self.owner, self.admin_key)

    @property
    def notebook(self) -> NotebookTabs:
        return NotebookTabs(self.app, self.owner, self.admin_key)

    @property
    def preferences(self) -> Preferences:
        return Preferences(self.app, self.owner, self.admin_key)

    @property
    def prompt_preview(self) -> PromptPreview:
        return PromptPreview(self.app, self.owner, self.admin_key)

    @property
    def requests(self) -> RequestBuilder:
        return RequestBuilder(self.app, self.owner)

    @property
    def rerun(self) -> Rerun:
        return Rerun(self.app, self.owner, self.admin_key)

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.app, self.owner, self.admin_key)

    @property
    def undo(self) -> UndoHistory:
        return UndoHistory(self.app, self.owner, self.admin_key)

    @property
    def models(self) -> Models:
        """Models and adapters: downloads, loading."""
        return Models(self.app, self.owner, self.admin_key)

    @property
    def training(self) -> Training:
        """Training runs."""
        return Training(self.app, self.owner, self.admin_key)

    @property
    def datasets(self) -> Datasets:
        """Training data."""
        return Datasets(self.app, self.owner, self.admin_key)
