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
        return self.of(Backup)

    @property
    def characters(self) -> Characters:
        return self.of(Characters)

    @property
    def chats(self) -> Chats:
        return self.of(Chats)

    @property
    def compare(self) -> Compare:
        return self.of(Compare)

    @property
    def notebook(self) -> NotebookTabs:
        return self.of(NotebookTabs)

    @property
    def preferences(self) -> Preferences:
        return self.of(Preferences)

    @property
    def prompt_preview(self) -> PromptPreview:
        return self.of(PromptPreview)

    @property
    def requests(self) -> RequestBuilder:
        return self.of(RequestBuilder)

    @property
    def rerun(self) -> Rerun:
        return self.of(Rerun)

    @property
    def tokens(self) -> Tokens:
        return self.of(Tokens)

    @property
    def undo(self) -> UndoHistory:
        return self.of(UndoHistory)

    @property
    def models(self) -> Models:
        """Models and adapters: downloads, loading."""
        return self.of(Models)

    @property
    def training(self) -> Training:
        """Training runs."""
        return self.of(Training)

    @property
    def datasets(self) -> Datasets:
        """Training data."""
        return self.of(Datasets)
