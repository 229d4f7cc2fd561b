"""Answers about models: what is on disk, what is loaded, adapters, downloads, remote engines. Page and API tell each in one place."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from pydantic import BaseModel

from modules.app import App
from modules.errors import UserError
from modules.generation.model_manager import ManagerStatus, State
from modules.generation.template import TurnKind, has_no_place_for
from modules.generation.types import LoadedModel
from modules.i18n.sentences import said
from modules.library import memory
from modules.library.download_jobs import STARTER, DownloadJob
from modules.library.hub import RepositoryName
from modules.library.loras import LoraSpec
from modules.library.model_spec import ModelSpec
from modules.loaders import choose
from modules.loaders.options import LoaderName
from modules.services.base import Service
from modules.services.models import wish_of
from modules.services.prompt_preview import problem_of

DOWNLOADS_SHOWN = 5
LOG_LINES_SHOWN = 40


# --- downloads


class DownloadReply(BaseModel):
    """A download as it stands; sizes in bytes, speed in bytes per second. It goes on while nobody looks."""

    id: int
    model: str
    branch: str
    state: Literal["asking", "running", "done", "failed", "cancelled"]
    folder: str
    error: str
    done: int = 0
    total: int | None = 0
    files_done: int = 0
    files_total: int = 0
    speed: float = 0.0
    seconds_left: float | None = None


class PageDownload(DownloadReply):
    """A download with the files that are under way, as (path, bytes there, bytes of all), for the page's script."""

    files: list[tuple[str, int, int | None]] = []
    name: str
    left: float | None = None


def download_reply(job: DownloadJob) -> DownloadReply:
    """A download for a program."""
    reply = DownloadReply(
        id=job.id, model=job.name.repository, branch=job.name.branch, state=job.state, folder=job.folder, error=said(job.error)
    )
    if (progress := job.progress) is None:
        return reply
    return reply.model_copy(
        update={
            "done": progress.done,
            "total": progress.total,
            "files_done": progress.files_done,
            "files_total": progress.files_total,
            "speed": progress.speed,
            "seconds_left": progress.seconds_left,
        }
    )


def page_download(job: DownloadJob) -> PageDownload:
    """A download for the page."""
    reply = download_reply(job)
    active = job.progress.active if job.progress else ()
    files = [(file.path, file.done, file.size) for file in active]
    return PageDownload(**reply.model_dump(), files=files, name=reply.model, left=reply.seconds_left)


def starter_download(app: App) -> PageDownload | None:
    """The newest try to get the starter model."""
    job = next((job for job in app.downloads.all() if job.name == STARTER), None)
    return page_download(job) if job else None


def _latest(jobs: list[DownloadJob]) -> list[DownloadJob]:
    """The newest try of each name."""
    newest: dict[RepositoryName, DownloadJob] = {}
    for job in jobs:
        newest.setdefault(job.name, job)
    return list(newest.values())


# --- what is loaded


class EngineView(BaseModel):
    """The state of the engine, and what its model can do. seconds: how long it has been in this state; loads: how many there were.

    template: where the chat template comes from, None without one; problem: why the model's own fails its test.
    """

    state: State
    name: str | None
    progress: str
    seconds: float
    error: str | None
    loads: int
    context: int | None = None
    template: str | None = None
    adapters: tuple[str, ...] = ()
    images: bool = False
    problem: str | None = None
    no_place_for: tuple[TurnKind, ...] = ()


class EngineDetail(EngineView):
    """The state of the engine for the Models tab. log: the last lines of the load; again: a model was loaded before."""

    log: list[str]
    again: bool
    takes_adapters: bool


class LoadStatus(BaseModel):
    """What the loaded model is busy with; bytes are of the key-value cache."""

    running: int
    waiting: int
    cache_bytes: int
    cache_limit: int | None
    cached_tokens: int


class LoadedCard(BaseModel):
    """What the load of the model did. bits: quantised to so many while loading; parallel: replies at a time; taken: its memory.

    speed: tokens per second of the last reply; notes: what the loader said on the way.
    """

    name: str
    bits: int | None
    parallel: int
    speed: float | None
    taken: str
    notes: list[str]


def engine_view(app: App, status: ManagerStatus) -> EngineView:
    """The engine in `status`, with what the loaded model can do."""
    model = app.manager.loaded
    if status.state == "empty" and (asked_for := app.loads.name):
        status = ManagerStatus("loading", asked_for, "starting")  # the engine does not know of it yet
    view = EngineView(
        state=status.state,
        name=status.name,
        progress=said(status.progress),
        seconds=round(status.seconds, 1),
        error=said(status.error) if status.error else None,
        loads=app.manager.loads,
    )
    if model is None:
        return view
    fitting = None if model.chat_template else app.templates.fitting(model.name)
    return view.model_copy(
        update={
            "context": model.context_length,
            "template": "model" if model.chat_template else fitting.origin if fitting else None,
            "adapters": model.adapters,
            "images": model.capabilities.images,
            "problem": said(problem_of(model) or "") or None if model.chat_template else None,
            "no_place_for": has_no_place_for(model.chat_template) if model.chat_template else (),
        }
    )


def load_status(model: LoadedModel | None) -> LoadStatus | None:
    """None without a model that tells."""
    try:
        status = model.status() if model is not None else None
    except UserError:  # its process has just ended, and starts anew with the next request
        return None
    return LoadStatus(**vars(status)) if status is not None else None


def loaded_card(app: App) -> LoadedCard | None:
    """None while no model is ready."""
    model, last = app.manager.loaded, app.last_load
    if model is None or last is None or app.manager.status.state != "ready":
        return None
    try:
        spec = app.models.find(last[0])
        status = model.status()
    except UserError:  # it was removed meanwhile, or its process has just ended
        return None
    wish = wish_of(last[1])
    need = memory.memory_need(spec, wish)
    return LoadedCard(
        name=spec.name,
        bits={"8-bit": 8, "4-bit": 4}.get(wish.weights) if spec.quantization is None and spec.format == "folder" else None,
        parallel=model.capabilities.max_parallel,
        speed=app.manager.speed,
        taken=said(memory.taken(need, status.cache_bytes, status.cache_limit)) if spec.format != "remote" else "",
        notes=[said(line) for line in app.manager.load_log if line.endswith(".")],
    )


# --- what is on disk


class ModelView(BaseModel):
    """A model on disk; size in bytes. problem: why it cannot be loaded."""

    name: str
    size: int
    format: str
    quantization: str | None
    context: int | None
    problem: str | None


class ListedModel(ModelView):
    """A model of the Models tab. code: it brings Python code; template: it has a chat template; loader: what would load it."""

    architecture: str | None
    parameters: int | None
    dtype: str | None
    vision: bool
    code: bool
    template: bool
    loader: LoaderName | None


class AdapterView(BaseModel):
    """An adapter on disk; size in bytes. base: the model that it was trained on."""

    name: str
    size: int
    base: str | None
    rank: int | None
    kind: str
    problem: str | None
    loaded: bool


class RemoteEngine(BaseModel):
    """A model on another engine; its address is for administrators."""

    name: str
    address: str | None


class ModelsPage(BaseModel):
    """Everything of the Models tab that changes by itself. downloads: the newest try of each name, the last DOWNLOADS_SHOWN."""

    models: list[ListedModel]
    engine: EngineDetail
    load: LoadStatus | None
    loaded: LoadedCard | None
    adapters: list[AdapterView]
    downloads: list[PageDownload]
    engines: list[RemoteEngine]
    admin: bool


def models_page(workspace: Service) -> ModelsPage:
    """What the Models tab shows; models that can be used come first."""
    app = workspace.app
    specs, model = app.models.all(), app.manager.loaded
    return ModelsPage(
        models=sorted((_listed(app, spec) for spec in specs), key=lambda listed: bool(listed.problem)),
        engine=EngineDetail(
            **engine_view(app, app.manager.status).model_dump(),
            log=[said(line) for line in app.manager.load_log[-LOG_LINES_SHOWN:]],
            again=app.last_load is not None,
            takes_adapters=model is not None and model.capabilities.adapters,
        ),
        load=load_status(model),
        loaded=loaded_card(app),
        adapters=[_adapter(spec, model.adapters if model is not None else ()) for spec in app.loras.all()],
        downloads=[page_download(job) for job in _latest(app.downloads.all())[:DOWNLOADS_SHOWN]],
        engines=[
            RemoteEngine(name=spec.name, address=spec.endpoint if workspace.is_admin else None)
            for spec in specs
            if spec.format == "remote"
        ],
        admin=workspace.is_admin,
    )


def model_view(spec: ModelSpec) -> ModelView:
    """A model on disk."""
    return ModelView(
        name=spec.name,
        size=spec.size_bytes,
        format=spec.format,
        quantization=spec.quantization.label or spec.quantization.method if spec.quantization else None,
        context=spec.context_length,
        problem=said(spec.problem) if spec.problem else None,
    )


def _listed(app: App, spec: ModelSpec) -> ListedModel:
    """A model, and the loader that takes it as it is set up."""
    listed = ListedModel(
        **model_view(spec).model_dump(),
        architecture=spec.architecture,
        parameters=spec.parameters,
        dtype=spec.dtype,
        vision=spec.vision,
        code=spec.custom_code,
        template=spec.chat_template is not None or spec.format == "remote",
        loader=None,
    )
    try:
        options = app.saved_options.for_model(spec.name, app.loading)
    except UserError as error:  # the file with saved settings is broken
        return listed.model_copy(update={"problem": listed.problem or said(error.message)})
    return listed.model_copy(update={"loader": choose.choose(spec, options)})


def _adapter(spec: LoraSpec, loaded: tuple[str, ...]) -> AdapterView:
    return AdapterView(
        name=spec.name,
        size=spec.size_bytes,
        base=PurePath(spec.base_model).name if spec.base_model else None,  # trained here, it is a path
        rank=spec.rank,
        kind="GGUF" if spec.format == "gguf" else spec.kind,
        problem=said(spec.problem) if spec.problem else None,
        loaded=spec.name in loaded,
    )
