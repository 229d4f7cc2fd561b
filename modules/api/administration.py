"""Models, adapters, downloads and remote engines: for administrators by key below /v1/internal, and for the page's script by session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from modules.api.auth import key_of_admin
from modules.api.common import Body, sent
from modules.api.errors import REFUSALS
from modules.api.internal import Health
from modules.api.model_answers import DownloadReply, ModelsPage, PageDownload, download_reply, models_page, page_download
from modules.api.page.dependencies import CurrentWorkspace
from modules.api.page.undo import ChangeNote
from modules.library.file_selection import Wanted
from modules.library.remote_address import RemoteAddress
from modules.loaders.options import LoadOptions

if TYPE_CHECKING:
    from modules.app import App


class LoadBody(Body):
    """The model to load, and how."""

    model: str
    """Its name, as /v1/internal/model/list has it."""
    options: LoadOptions = LoadOptions()
    """What is set here goes over what was saved for this model."""
    stop_running: bool = False
    """Stop the replies that are being made instead of waiting for their end."""

    @property
    def own_options(self) -> LoadOptions | None:
        """None where the body sets none: the server's own go over what was saved then."""
        return self.options if self.options.model_fields_set else None


class PageLoadBody(LoadBody):
    """The model to load, by its name; replies being made are stopped."""

    stop_running: bool = True

    @classmethod
    def in_our_words(cls, said: Mapping[str, Any]) -> dict[str, Any]:
        return _named(super().in_our_words(said))


class UnloadBody(Body):
    """How to unload."""

    stop_running: bool = False
    """Stop the replies that are being made instead of waiting for their end."""


class AdapterBody(Body):
    """An adapter."""

    name: str
    """Its name, as /v1/internal/adapters/list has it."""


class AdapterChatBody(AdapterBody):
    """An adapter for a new chat, and how strongly it acts there."""

    strength: float = 1.0


class DownloadBody(Body, Wanted):
    """What to fetch from the Hub."""

    model_config = Body.model_config
    model: str
    """ORG/NAME, ORG/NAME:BRANCH, or the address of its page."""


class PageDownloadBody(DownloadBody):
    """What to fetch from the Hub, by its name."""

    @classmethod
    def in_our_words(cls, said: Mapping[str, Any]) -> dict[str, Any]:
        return _named(super().in_our_words(said))


class EngineBody(BaseModel):
    """model: its name there; empty takes the first one. api_key: where it asks for one. context_length: 0 asks the engine."""

    name: str
    base_url: str
    model: str = ""
    api_key: str = ""
    context_length: int = 0

    @property
    def address(self) -> RemoteAddress:
        return RemoteAddress(self.base_url.strip(), self.model.strip(), self.api_key.strip(), self.context_length or None)


class Stopped(BaseModel):
    """How many replies were stopped."""

    stopped: int


class DownloadList(BaseModel):
    """Every download since the start of the server, the newest first."""

    downloads: list[DownloadReply]


class NewChat(BaseModel):
    """The id of a chat that was begun."""

    chat: int


def _named(said: Mapping[str, Any]) -> dict[str, Any]:
    """The page's script calls a model `name`."""
    return {"model" if field == "name" else field: value for field, value in said.items()}


def router(app: App) -> APIRouter:
    """The routes for administrators with a key."""
    guards = [Depends(key_of_admin(app))]
    routes = APIRouter(prefix="/v1/internal", tags=["administration"], responses=REFUSALS, dependencies=guards)
    _add_loading(routes)
    _add_downloads(routes)
    return routes


def _add_loading(routes: APIRouter) -> None:
    @routes.post("/stop")
    def stop_all_replies(workspace: CurrentWorkspace) -> Stopped:
        """Stop every reply that is being made, of all users."""
        return Stopped(stopped=workspace.models.stop_replies())

    @routes.post("/model/load")
    def load_model(workspace: CurrentWorkspace, body: Annotated[LoadBody, sent(LoadBody)]) -> Health:
        """Replace the loaded model; answers when the new one is ready."""
        workspace.models.load(body.model, body.own_options, stop_running=body.stop_running)
        return Health()

    @routes.post("/model/unload")
    def unload_model(workspace: CurrentWorkspace, body: Annotated[UnloadBody | None, sent(UnloadBody | None)]) -> Health:
        """Give the model's memory back."""
        workspace.models.unload(stop_running=body.stop_running if body else False)
        return Health()

    @routes.post("/adapters/load")
    def load_adapter(workspace: CurrentWorkspace, body: Annotated[AdapterBody, sent(AdapterBody)]) -> Health:
        """Make an adapter available to requests."""
        workspace.models.load_adapter(body.name)
        return Health()

    @routes.post("/adapters/unload")
    def unload_adapter(workspace: CurrentWorkspace, body: Annotated[AdapterBody, sent(AdapterBody)]) -> Health:
        """Take an adapter out of memory."""
        workspace.models.unload_adapter(body.name)
        return Health()


def _add_downloads(routes: APIRouter) -> None:
    @routes.post("/download")
    def start_download(workspace: CurrentWorkspace, body: Annotated[DownloadBody, sent(DownloadBody)]) -> DownloadReply:
        """Begin to fetch a model or an adapter; the same one again joins the download that runs."""
        return download_reply(workspace.models.start_download(body.model, body))

    @routes.get("/downloads")
    def list_downloads(workspace: CurrentWorkspace) -> DownloadList:
        """Every download, with its progress."""
        return DownloadList(downloads=[download_reply(job) for job in workspace.models.downloads()])

    @routes.get("/downloads/{number}")
    def read_download(workspace: CurrentWorkspace, number: int) -> DownloadReply:
        """One download, with its progress."""
        return download_reply(workspace.models.download(number))

    @routes.post("/downloads/{number}/cancel")
    def cancel_download(workspace: CurrentWorkspace, number: int) -> DownloadReply:
        """Stop a download; what has arrived is kept for the next time."""
        return download_reply(workspace.models.cancel_download(number))


def page_router() -> APIRouter:
    """Part of the router of chats/, for the Models tab: everyone may look, and administrators change."""
    routes = APIRouter()
    _add_page_loading(routes)
    _add_page_downloads(routes)
    return routes


def _add_page_loading(routes: APIRouter) -> None:
    @routes.get("/models")
    def show_models(workspace: CurrentWorkspace) -> ModelsPage:
        return models_page(workspace)

    @routes.post("/model")
    def begin_load(workspace: CurrentWorkspace, body: PageLoadBody) -> None:
        """The load goes on while nobody looks; the engine's status says how."""
        workspace.models.begin_load(body.model, body.own_options, stop_running=body.stop_running)

    @routes.post("/model/again")
    def begin_reload(workspace: CurrentWorkspace) -> None:
        workspace.models.begin_reload()

    @routes.delete("/model")
    def unload_model(workspace: CurrentWorkspace) -> None:
        workspace.models.unload(stop_running=True)

    @routes.post("/adapters")
    def load_adapter(workspace: CurrentWorkspace, body: AdapterBody) -> Health:
        workspace.models.load_adapter(body.name)
        return Health()

    @routes.delete("/adapters/{name}")
    def unload_adapter(workspace: CurrentWorkspace, name: str) -> Health:
        workspace.models.unload_adapter(name)
        return Health()

    @routes.post("/adapters/chat")
    def chat_with_adapter(workspace: CurrentWorkspace, body: AdapterChatBody) -> NewChat:
        return NewChat(chat=workspace.models.chat_with_adapter(body.name, body.strength))

    @routes.post("/engines")
    def add_engine(workspace: CurrentWorkspace, body: EngineBody) -> None:
        workspace.models.add_engine(body.name, body.address)

    @routes.delete("/engines/{name}")
    def remove_engine(workspace: CurrentWorkspace, name: str) -> ChangeNote:
        return ChangeNote.of(workspace.models.remove_engine(name), "engine.removed", name=name)


def _add_page_downloads(routes: APIRouter) -> None:
    @routes.post("/downloads")
    def start_download(workspace: CurrentWorkspace, body: PageDownloadBody) -> PageDownload:
        return page_download(workspace.models.start_download(body.model, body))

    @routes.post("/starter")
    def fetch_starter(workspace: CurrentWorkspace) -> PageDownload:
        """The starter model, which is loaded once it is there."""
        return page_download(workspace.models.fetch_starter())

    @routes.delete("/downloads/{job_id}")
    def cancel_download(workspace: CurrentWorkspace, job_id: int) -> PageDownload:
        return page_download(workspace.models.cancel_download(job_id))
