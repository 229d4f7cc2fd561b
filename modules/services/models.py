"""What the Models tab does, one function each. Only administrators may; every refusal is a UserError."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from modules.app import App
from modules.chats.conversation import ChatSettings
from modules.errors import Conflict, NotFound, UserError
from modules.library import memory
from modules.library.download_jobs import DownloadJob
from modules.library.file_selection import Wanted
from modules.library.remote_address import RemoteAddress, write_address
from modules.library.trash import Undo
from modules.loaders.options import LoadOptions

_CACHE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 1.0625,
    "q5_1": 0.75,
    "q5_0": 0.6875,
    "q4_1": 0.625,
    "q4_0": 0.5625,
}


def load_model(app: App, owner: str, name: str, options: LoadOptions | None = None, *, stop_running: bool = True) -> None:
    """Begin to load a model; the engine's status says how it goes. Raises NotFound, NotAllowed."""
    app.access.require_admin(owner)
    spec = app.models.find(name)
    if spec.problem:
        raise UserError(spec.problem)
    app.saved_options.for_model(spec.name)  # a broken file is said now
    _begin(app, spec.name, options, lambda: app.load_model(spec.name, options, stop_running=stop_running))


def reload_model(app: App, owner: str) -> None:
    """Begin to load the last model again, as it was loaded, with its adapters."""
    app.access.require_admin(owner)
    if app.last_load is None:
        raise UserError("No model was loaded yet: choose one first.")
    name = app.models.find(app.last_load[0]).name
    _begin(app, name, app.last_load[1], lambda: app.reload_model(stop_running=True))


def _begin(app: App, name: str, options: LoadOptions | None, work: Callable[[], object]) -> None:
    """Raises Conflict where just this is under way: a second click loads nothing twice."""
    if not app.loads.begin((name, options)):
        raise Conflict(f"{name} is being loaded already.", param="name")

    def load() -> None:
        with contextlib.suppress(UserError):  # the engine's status keeps the sentence, and the page shows it
            try:
                work()
            finally:
                app.loads.end((name, options))

    threading.Thread(target=load, name="load", daemon=True).start()


def unload_model(app: App, owner: str) -> None:
    """Give the model's memory back; replies being written end."""
    app.access.require_admin(owner)
    app.engine.unload(stop_running=True)


def start_download(app: App, owner: str, name: str, quant: str = "") -> DownloadJob:
    """Begin to fetch ORG/NAME, or `starter`. quant: which of several quantisations. Raises UserError, NotAllowed."""
    app.access.require_admin(owner)
    return app.downloads.start(name, Wanted(quant=quant.strip()))


def get_starter(app: App, owner: str) -> DownloadJob:
    """Fetch the starter model, and load it where nobody has loaded another meanwhile. Raises NotAllowed."""
    app.access.require_admin(owner)

    def load(name: str) -> None:
        if app.engine.status.state == "empty":
            with contextlib.suppress(Conflict):
                _begin(app, name, None, lambda: app.load_model(name))

    return app.downloads.start("starter", then=load)


def load_adapter(app: App, owner: str, name: str) -> None:
    """Make an adapter available to every chat and request. Raises UserError with the reason where it does not fit."""
    app.access.require_admin(owner)
    app.load_adapter(name)


def unload_adapter(app: App, owner: str, name: str) -> None:
    app.access.require_admin(owner)
    app.unload_adapter(name)


def chat_with_adapter(app: App, owner: str, name: str, strength: float) -> int:
    """A new chat that a loaded adapter answers; returns its id."""
    if name not in app.engine.model.adapters:
        raise NotFound(f"No adapter {name} is loaded.", param="name")
    settings = ChatSettings.read({"adapter": name, "adapter_strength": strength})
    return app.store.create_chat(owner, settings=settings.differences()).id


def add_engine(app: App, owner: str, name: str, address: RemoteAddress) -> None:
    """Keep the address of a remote engine in models/NAME.yaml. Raises UserError, Conflict."""
    app.access.require_admin(owner)
    write_address(app.models.folder, name, address)


def remove_engine(app: App, owner: str, name: str) -> Undo:
    """Take models/NAME.yaml away, with the key in it. Raises NotFound for what is not the address of an engine."""
    app.access.require_admin(owner)
    spec = app.models.find(name)
    if spec.format != "remote":
        raise NotFound(f"{spec.name} is not a remote engine.", param="name")
    with app.trash.undoable(owner, "engine", spec.name, [spec.path]) as undo:
        spec.path.unlink(missing_ok=True)
    return undo


def keep_loading(app: App, owner: str, name: str, options: LoadOptions) -> Undo:
    """Remember how a model is loaded. Raises UserError."""
    app.access.require_admin(owner)
    with app.trash.undoable(owner, "loading", name, [app.saved_options.path]) as undo:
        app.saved_options.save(name, options)
    return undo


def wish_of(options: LoadOptions) -> memory.LoadWish:
    """What these options mean for memory."""
    if options.load_in_8bit or options.load_in_4bit:
        weights: memory.Weights = "8-bit" if options.load_in_8bit else "4-bit"
    elif options.bf16 or options.dtype in ("bfloat16", "float16"):
        weights = "16-bit"
    else:
        weights = "float32" if options.dtype == "float32" else "stored"
    context = options.ctx_size or memory.DEFAULT_CONTEXT
    return memory.LoadWish(weights, context, slots=1, cache_bytes=_CACHE_BYTES[options.cache_type])
