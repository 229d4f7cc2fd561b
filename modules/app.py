"""Everything that lives as long as the process: made once in server.py, and passed to the page and the API."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from modules.access import make_access
from modules.chats.notebook import Notebooks
from modules.chats.replies import Replies
from modules.chats.store import ChatStore
from modules.errors import Conflict, ReadOnly, UserError
from modules.generation.model_manager import ModelManager
from modules.generation.sampling import SamplingParams
from modules.generation.template import has_no_place_for, template_problem
from modules.generation.types import LoadedModel
from modules.library.characters import CharacterLibrary
from modules.library.download_jobs import DownloadJobs
from modules.library.loras import LoraLibrary
from modules.library.model_spec import ModelSpec
from modules.library.models import ModelLibrary
from modules.library.paths import why_not_written
from modules.library.presets import PresetLibrary
from modules.library.prompts import PromptLibrary
from modules.library.templates import TemplateLibrary
from modules.library.trash import Trash
from modules.loaders import choose, embedding
from modules.loaders.embedding import EmbeddingModel
from modules.loaders.options import LoadOptions
from modules.loaders.saved_options import SavedOptions
from modules.settings.page import PageSettings
from modules.settings.server import ServerOptions
from modules.training.jobs import TrainingJobs

log = logging.getLogger(__name__)
VERSION = "0.1.0"
"""The one of pyproject.toml, which a copy of the program may lack."""


class App:
    """The parts of the program and how they know each other. `root` is the folder that relative folders stand in."""

    def __init__(
        self,
        root: Path,
        options: ServerOptions | None = None,
        loading: LoadOptions | None = None,
        sampling: SamplingParams | None = None,
        page: PageSettings | None = None,
    ) -> None:
        self.root = root
        self.options = options or ServerOptions()
        self.loading = loading or LoadOptions()
        self.sampling = sampling or SamplingParams()
        self.page = page or PageSettings()
        models = root / self.options.model_dir
        with contextlib.suppress(OSError):  # told below
            models.mkdir(parents=True, exist_ok=True)
        self.data = root / self.options.data_dir
        _make_private(self.data)
        _warn_of_read_only(root, models, root / self.options.lora_dir)
        self.access = make_access(self.options, self.data)
        self.models = ModelLibrary(models)
        self.loras = LoraLibrary(root / self.options.lora_dir)
        self.downloads = DownloadJobs(models, root / self.options.lora_dir)
        self.presets = PresetLibrary(root / "presets", self.data / "presets" if self.access.logins else None)
        self.prompts = PromptLibrary(root / "prompts", self.data / "prompts" if self.access.logins else None)
        self.templates = TemplateLibrary(root / "prompts" / "templates")
        self.characters = CharacterLibrary(root / "characters", self.data / "characters" if self.access.logins else None)
        self.saved_options = SavedOptions(models / "config-user.yaml")
        self.manager = ModelManager()
        self.last_load: tuple[str, LoadOptions] | None = None
        """The model that was loaded last, or tried to be, and how."""
        self.loads = Underway()
        """The loads that were asked for on the page and are not done."""
        self._embedder: EmbeddingModel | None = None
        self._embedder_lock = threading.Lock()
        self.store = ChatStore(self.data / "textloom.sqlite3")
        self.replies = Replies(self.store)
        self.notebooks = Notebooks(self.store, self.manager)
        self.training = TrainingJobs(root, self.models, self.loras)
        self.trash = Trash(self.data / "deleted", root)
        self.trash.sweep()
        self.started = time.time()
        self._closing = threading.Event()
        self.on_stop: list[Callable[[], None]] = []
        """What ends when the server stops, before its connections are closed."""
        if self.options.idle_timeout:
            threading.Thread(target=self._unload_when_idle, name="idle", daemon=True).start()

    def load_model(self, name: str, options: LoadOptions | None = None, *, stop_running: bool = False) -> LoadedModel:
        """Replace the loaded model by `name`, with what was saved for it and `options` over that. Raises UserError."""
        spec = self.models.find(name)
        merged = self.saved_options.for_model(spec.name, options if options is not None else self.loading)
        return self.load_as(spec, merged, stop_running=stop_running)

    def load_as(self, spec: ModelSpec, options: LoadOptions, *, stop_running: bool = False) -> LoadedModel:
        """Replace the loaded model by `spec` with these options and no others. Raises UserError."""
        self.last_load = spec.name, options

        def load(report: Callable[[str], None]) -> LoadedModel:
            return choose.load(spec, options, report)

        model = self.manager.replace(spec.name, load, stop_running=stop_running)
        log.info("loaded %s", spec.name)
        if model.chat_template and (problem := template_problem(model.chat_template)):
            log.warning("the chat template of %s fails its test: %s", spec.name, problem)
        if model.chat_template and (kinds := has_no_place_for(model.chat_template)):
            log.info("the chat template of %s has no place for turns of these kinds: %s", spec.name, ", ".join(kinds))
        return model

    def fingerprint(self, model: LoadedModel) -> str:
        """What stands for all that decides a reply besides its request: this program, the model, and how it was loaded."""
        name, options = self.last_load or (model.name, LoadOptions())
        loaded = options.model_dump(mode="json", exclude={"remote_api_key"}, exclude_defaults=True)
        parts = json.dumps([VERSION, name, model.name, loaded], sort_keys=True)
        return f"fp_{hashlib.sha256(parts.encode()).hexdigest()[:10]}"

    def load_at_start(self) -> None:
        """Load the model and adapters that the command line names; a failure is logged and shown, the server goes on."""
        try:
            self.load_model(self.options.model)
        except UserError as error:
            log.error("%s", error.message)
        else:
            self.load_adapters(self.options.lora)

    def load_adapters(self, names: Iterable[str]) -> None:
        """Those that can be; what is wrong with the others is logged."""
        for name in names:
            try:
                self.load_adapter(name)
            except UserError as error:
                log.error("%s", error.message)

    def load_adapter(self, name: str) -> str:
        """Make an adapter of the adapters folder available to requests; returns its name. Raises UserError."""
        spec = self.loras.find(name)
        if spec.problem:
            raise UserError(f"{spec.name} cannot be used: {spec.problem}", param="name")
        with self.manager.lease(wait=True) as model:
            if not model.capabilities.adapters:
                raise UserError(f"{model.name} cannot take adapters with its loader.", param="name")
            if spec.name in model.adapters:
                raise Conflict(f"{spec.name} is loaded already.", param="name")
            model.load_adapter(spec.name, str(spec.path))
        return spec.name

    def embedding_model(self) -> EmbeddingModel:
        """The model of --embedding-model, which the first who asks waits for. Raises UserError."""
        with self._embedder_lock:
            if self._embedder is None:
                spec = self.models.find(self.options.embedding_model)
                self._embedder = embedding.load(spec, self.loading)
                log.info("loaded %s for embeddings", spec.name)
            return self._embedder

    def stop(self) -> None:
        """End all replies and event streams: connections wait for them. Idempotent."""
        self.replies.close()
        self.notebooks.close()
        for end in self.on_stop:
            end()

    def close(self) -> None:
        """Stop what runs and give everything back."""
        self._closing.set()
        self.training.close()
        self.trash.close()
        self.downloads.close()
        self.replies.close()
        self.notebooks.close()
        self.manager.close()
        self.store.close()
        self.access.close()

    def unload_idle_model(self, idle: float = 0.0) -> None:
        """Give the memory of a model back that nobody has used for `idle` seconds, until the next request asks for it."""
        loaded, last_load = self.manager.loaded, self.last_load
        if loaded is None or last_load is None:
            return
        (name, options), adapters = last_load, loaded.adapters

        def load(report: Callable[[str], None]) -> LoadedModel:
            model = choose.load(self.models.find(name), options, report)
            for adapter in adapters:
                try:
                    model.load_adapter(adapter, str(self.loras.find(adapter).path))
                except UserError as error:
                    log.error("%s", error.message)
            return model

        if self.manager.unload_idle(load, idle=idle):
            log.info("%s was unloaded: nobody has used it for %g minutes", loaded.name, idle / 60)

    def _unload_when_idle(self) -> None:
        limit = self.options.idle_timeout * 60
        while not self._closing.wait(min(limit / 4, 15)):
            self.unload_idle_model(limit)


class Underway:
    """What has begun and is not done, so that nothing begins twice. Safe to use from any thread.

    A key is a name and what else tells it from others.
    """

    def __init__(self) -> None:
        self._keys: list[tuple[str, object]] = []
        self._lock = threading.Lock()

    @property
    def name(self) -> str | None:
        """Of what began first and is not done."""
        with self._lock:
            return self._keys[0][0] if self._keys else None

    def begin(self, key: tuple[str, object]) -> bool:
        """Whether this is the first; where it is not, nothing is noted."""
        with self._lock:
            if key in self._keys:
                return False
            self._keys.append(key)
            return True

    def end(self, key: tuple[str, object]) -> None:
        with self._lock:
            self._keys.remove(key)


def _make_private(folder: Path) -> None:
    """Make the folder with chats and logins, and close it to the machine's other users. Raises ReadOnly."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadOnly(folder, error.strerror) from None
    if reason := why_not_written(folder):
        raise UserError(f"{reason} Or choose another folder with --data-dir.")
    try:
        folder.chmod(0o700)
    except OSError as error:
        log.warning("%s could not be closed to other users of this machine (%s): they may read chats.", folder, error.strerror)


def _warn_of_read_only(root: Path, models: Path, loras: Path) -> None:
    """Say of each folder that is not needed to start that nothing can be saved in it."""
    for folder in (models, loras, *(root / name for name in ("characters", "presets", "prompts", "training"))):
        if reason := why_not_written(folder):
            log.warning("%s", reason)
