"""Models and adapters of the server: loading, downloads, remote engines, saved options. What changes something is for administrators."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from modules.chats.conversation import ChatSettings
from modules.errors import Conflict, NotFound, UserError
from modules.generation.context_overflow import DEFAULT_CONTEXT
from modules.generation.types import LoadedModel
from modules.library import memory
from modules.library.download_jobs import DownloadJob
from modules.library.file_selection import Wanted
from modules.library.gguf_header import bytes_per_element
from modules.library.hardware import this_machine
from modules.library.model_spec import ModelSpec
from modules.library.remote_address import RemoteAddress, write_address
from modules.library.trash import Undo
from modules.loaders import choose
from modules.loaders.options import LoadOptions
from modules.services.base import Service


@dataclass(frozen=True)
class Fit:
    """How a model would be loaded with some options, and whether it fits.

    used: the options that its loader reads. quantizes: whether the loader can quantise while loading.
    verdict: "wrong" where it cannot be loaded, else whether memory suffices; sentence: why; warnings: what is odd about the model.
    """

    used: frozenset[str]
    quantizes: bool
    verdict: memory.Verdict | Literal["wrong"]
    sentence: str
    warnings: tuple[str, ...] = ()


class Models(Service):
    """Loading, adapters, downloads, remote engines and saved options. Every refusal is a UserError."""

    # --- loading

    def load(self, name: str, options: LoadOptions | None = None, *, stop_running: bool = False) -> LoadedModel:
        """Replace the loaded model by `name`, and wait for it. options: over what was saved for it. Raises UserError."""
        self.require_admin()
        return self.app.load_model(name, options, stop_running=stop_running)

    def begin_load(self, name: str, options: LoadOptions | None = None, *, stop_running: bool = True) -> None:
        """Begin to load a model; the engine's status says how it goes. Raises NotFound, Forbidden, Conflict."""
        self.require_admin()
        spec = self.app.models.find(name)
        if spec.problem:
            raise UserError(spec.problem)
        self.app.saved_options.for_model(spec.name)  # a broken file is said now
        self._begin(spec.name, options, lambda: self.load(spec.name, options, stop_running=stop_running))

    def begin_reload(self) -> None:
        """Begin to load the last model again, as it was loaded, with its adapters. Raises Forbidden, UserError, Conflict."""
        self.require_admin()
        name, options = self._last_load()
        self._begin(self.app.models.find(name).name, options, self._reload)

    def _reload(self) -> None:
        name, options = self._last_load()
        model = self.app.manager.loaded or self.app.manager.unloaded
        adapters = model.adapters if model is not None else ()
        self.app.load_as(self.app.models.find(name), options, stop_running=True)
        self.app.load_adapters(adapters)

    def _last_load(self) -> tuple[str, LoadOptions]:
        if self.app.last_load is None:
            raise UserError("No model was loaded yet: choose one first.")
        return self.app.last_load

    def _begin(self, name: str, options: LoadOptions | None, work: Callable[[], object]) -> None:
        """Raises Conflict where just this is under way: a second click loads nothing twice."""
        if not self.app.loads.begin((name, options)):
            raise Conflict(f"{name} is being loaded already.", param="name")

        def load() -> None:
            with contextlib.suppress(UserError):  # the engine's status keeps the sentence, and the page shows it
                try:
                    work()
                finally:
                    self.app.loads.end((name, options))

        threading.Thread(target=load, name="load", daemon=True).start()

    def unload(self, *, stop_running: bool = False) -> None:
        """Give the model's memory back. stop_running: end the replies that are being made instead of waiting for them."""
        self.require_admin()
        self.app.manager.unload(stop_running=stop_running)

    def stop_replies(self) -> int:
        """Stop every reply that is being made, of all users; returns how many."""
        self.require_admin()
        return self.app.manager.stop_all()

    # --- how a model is loaded

    def saved_options(self, name: str) -> LoadOptions:
        """What was saved for a model, over the server's own defaults. Raises NotFound, UserError."""
        return self.app.saved_options.for_model(self.app.models.find(name).name, self.app.loading)

    def save_options(self, name: str, options: LoadOptions) -> Undo:
        """Remember how a model is loaded. Raises NotFound, Forbidden."""
        self.require_admin()
        name = self.app.models.find(name).name
        with self.app.trash.undoable(self.owner, "loading", name, [self.app.saved_options.path]) as undo:
            self.app.saved_options.save(name, options)
        return undo

    def effective(self, name: str, options: LoadOptions) -> LoadOptions:
        """Those of the given options that the loader of the model reads. Raises NotFound."""
        used = choose.used_options(choose.choose(self.app.models.find(name), options))
        return LoadOptions.read({field: value for field, value in options.given().items() if field in used})

    def fit(self, name: str, options: LoadOptions) -> Fit:
        """Which options the loader of a model reads, and whether the model fits. Raises NotFound."""
        spec = self.app.models.find(name)
        loader = choose.choose(spec, options)
        used, quantizes = choose.used_options(loader), loader in ("transformers", "bitsandbytes")
        try:
            reason = spec.problem or choose.loader(loader).why_not(spec, options)
        except ImportError as error:
            reason = f"The {loader} loader cannot be used: {error}"
        if reason:
            return Fit(used, quantizes, "wrong", reason)
        plan = memory.plan(spec, wish_of(options), this_machine(), on_gpu=not options.cpu, freed=self.freed())
        return Fit(used, quantizes, plan.verdict, plan.sentence, spec.warnings)

    def freed(self) -> int:
        """About how many bytes the loaded model gives back when another one takes its place."""
        model, last = self.app.manager.loaded, self.app.last_load
        if model is None or last is None or last[0] != model.name:
            return 0
        try:
            spec = self.app.models.find(model.name)
        except NotFound:  # it was removed meanwhile
            return 0
        return memory.memory_need(spec, wish_of(last[1])).total

    # --- adapters

    def load_adapter(self, name: str) -> None:
        """Make an adapter available to every chat and request. Raises UserError with the reason where it does not fit."""
        self.require_admin()
        self.app.load_adapter(name)

    def unload_adapter(self, name: str) -> None:
        """Take an adapter out of memory. Raises NotFound, Conflict where replies use it."""
        self.require_admin()
        with self.app.manager.lease(wait=True) as model:
            if name not in model.adapters:
                raise NotFound(f"No adapter {name} is loaded.", param="name")
            model.unload_adapter(name)

    def chat_with_adapter(self, name: str, strength: float) -> int:
        """A new chat that a loaded adapter answers; returns its id."""
        with self.app.manager.lease(wait=True) as model:
            if name not in model.adapters:
                raise NotFound(f"No adapter {name} is loaded.", param="name")
        settings = ChatSettings.read({"adapter": name, "adapter_strength": strength})
        return self.history.chats.create(settings=settings.differences()).id

    # --- downloads

    def start_download(self, name: str, wanted: Wanted | None = None) -> DownloadJob:
        """Begin to fetch ORG/NAME[:BRANCH] of the Hub, or `starter`. Raises UserError, Forbidden."""
        self.require_admin()
        return self.app.downloads.start(name, wanted)

    def fetch_starter(self) -> DownloadJob:
        """Fetch the starter model, and load it where nobody has loaded another meanwhile. Raises Forbidden."""
        self.require_admin()

        def load(name: str) -> None:
            if self.app.manager.status.state == "empty":
                with contextlib.suppress(Conflict):
                    self._begin(name, None, lambda: self.app.load_model(name))

        return self.app.downloads.start("starter", then=load)

    def downloads(self) -> list[DownloadJob]:
        """Every download since the start of the server, the newest first."""
        return self.app.downloads.all()

    def download(self, id_: int) -> DownloadJob:
        """One download. Raises NotFound."""
        return self.app.downloads.get(id_)

    def cancel_download(self, id_: int) -> DownloadJob:
        """Stop a download; what has arrived is kept for the next time. Raises NotFound, Forbidden."""
        self.require_admin()
        self.app.downloads.cancel(id_)
        return self.app.downloads.get(id_)

    # --- remote engines

    def add_engine(self, name: str, address: RemoteAddress) -> None:
        """Keep the address of a remote engine in models/NAME.yaml. Raises UserError, Conflict, Forbidden."""
        self.require_admin()
        write_address(self.app.models.folder, name, address)

    def remove_engine(self, name: str) -> Undo:
        """Take models/NAME.yaml away, with the key in it. Raises NotFound for what is not the address of an engine, Forbidden."""
        self.require_admin()
        spec = self._remote(name)
        with self.app.trash.undoable(self.owner, "engine", spec.name, [spec.path]) as undo:
            spec.path.unlink(missing_ok=True)
        return undo

    def _remote(self, name: str) -> ModelSpec:
        spec = self.app.models.find(name)
        if spec.format != "remote":
            raise NotFound(f"{spec.name} is not a remote engine.", param="name")
        return spec


def wish_of(options: LoadOptions) -> memory.LoadWish:
    """What these options mean for memory."""
    if options.load_in_8bit or options.load_in_4bit:
        weights: memory.Weights = "8-bit" if options.load_in_8bit else "4-bit"
    elif options.bf16 or options.dtype in ("bfloat16", "float16"):
        weights = "16-bit"
    else:
        weights = "float32" if options.dtype == "float32" else "stored"
    context = options.ctx_size or DEFAULT_CONTEXT
    return memory.LoadWish(weights, context, slots=1, cache_bytes=bytes_per_element(options.cache_type))
