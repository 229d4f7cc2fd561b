"""What the Models tab is told, as JSON: models, what is loaded, adapters, downloads, remote engines."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from modules.api.page.views import download_view, engine_view, load_view, model_view
from modules.app import App
from modules.errors import UserError
from modules.i18n.sentences import said
from modules.library import memory
from modules.library.download_jobs import DownloadJob
from modules.library.hub import RepositoryName
from modules.library.loras import LoraSpec
from modules.library.model_spec import ModelSpec
from modules.loaders import choose
from modules.services.models import wish_of

DOWNLOADS_SHOWN = 5
LOG_LINES_SHOWN = 40


def models_view(app: App, owner: str) -> dict[str, Any]:
    """Everything of the tab that changes by itself; addresses of engines are for administrators."""
    admin = app.access.is_admin(owner)
    specs = app.models.all()
    model = app.engine.loaded
    return {
        "models": sorted((_listed(app, spec) for spec in specs), key=lambda model: bool(model["problem"])),  # usable ones first
        "engine": {
            **engine_view(app, app.engine.status),
            "log": [said(line) for line in app.engine.load_log[-LOG_LINES_SHOWN:]],
            "again": app.last_load is not None,
            "takes_adapters": model is not None and model.capabilities.adapters,
        },
        "load": load_view(model),
        "loaded": loaded_view(app),
        "adapters": [_adapter(spec, model.adapters if model is not None else ()) for spec in app.loras.all()],
        "downloads": [download_view(job) for job in _latest(app.downloads.all())[:DOWNLOADS_SHOWN]],
        "engines": [
            {"name": spec.name, "address": spec.endpoint if admin else None} for spec in specs if spec.format == "remote"
        ],
        "admin": admin,
    }


def loaded_view(app: App) -> dict[str, Any] | None:
    """What the load of the model did, for its card: bits, replies at a time, memory, speed, and what it said on the way."""
    model, last = app.engine.loaded, app.last_load
    if model is None or last is None or app.engine.status.state != "ready":
        return None
    try:
        spec = app.models.find(last[0])
        status = model.status()
    except UserError:  # it was removed meanwhile, or its process has just ended
        return None
    wish = wish_of(last[1])
    need = memory.memory_need(spec, wish)
    return {
        "name": spec.name,
        "bits": {"8-bit": 8, "4-bit": 4}.get(wish.weights) if spec.quantization is None and spec.format == "folder" else None,
        "parallel": model.capabilities.max_parallel,
        "speed": app.engine.speed,
        "taken": said(memory.taken(need, status.cache_bytes, status.cache_limit)) if spec.format != "remote" else "",
        "notes": [said(line) for line in app.engine.load_log if line.endswith(".")],
    }


def _listed(app: App, spec: ModelSpec) -> dict[str, Any]:
    """A model, and the loader that takes it as it is set up."""
    view = {
        **model_view(spec),
        "architecture": spec.architecture,
        "parameters": spec.parameters,
        "dtype": spec.dtype,
        "vision": spec.vision,
        "code": spec.custom_code,
        "template": spec.chat_template is not None or spec.format == "remote",
    }
    try:
        options = app.saved_options.for_model(spec.name, app.loading)
    except UserError as error:  # the file with saved settings is broken
        return {**view, "loader": None, "problem": view["problem"] or said(error.message)}
    return {**view, "loader": choose.choose(spec, options)}


def _adapter(spec: LoraSpec, loaded: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": spec.name,
        "size": spec.size_bytes,
        "base": PurePath(spec.base_model).name if spec.base_model else None,  # trained here, it is a path
        "rank": spec.rank,
        "kind": "GGUF" if spec.format == "gguf" else spec.kind,
        "problem": said(spec.problem) if spec.problem else None,
        "loaded": spec.name in loaded,
    }


def _latest(jobs: list[DownloadJob]) -> list[DownloadJob]:
    """The newest try of each name."""
    newest: dict[RepositoryName, DownloadJob] = {}
    for job in jobs:
        newest.setdefault(job.name, job)
    return list(newest.values())
