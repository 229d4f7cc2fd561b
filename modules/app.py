"""Everything that lives as long as the process: made once in server.py, and passed to the page and the API."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from modules.access import make_access
from modules.chats.pictures import PictureStore
from modules.chats.replies import Replies
from modules.chats.store import ChatStore
from modules.errors import UserError
from modules.generation.engine import Engine
from modules.generation.sampling import SamplingParams
from modules.generation.template import template_problem
from modules.generation.types import LoadedModel
from modules.library.characters import CharacterLibrary
from modules.library.download_jobs import DownloadJobs
from modules.library.loras import LoraLibrary
from modules.library.models import ModelLibrary
from modules.library.presets import PresetLibrary
from modules.library.prompts import PromptLibrary
from modules.library.templates import TemplateLibrary
from modules.loaders import choose
from modules.loaders.options import LoadOptions
from modules.loaders.saved import SavedOptions
from modules.settings.server import ServerOptions
from modules.training.jobs import TrainingJobs

log = logging.getLogger(__name__)


class App:
    """The parts of the program and how they know each other. `root` is the folder that relative folders stand in."""

    def __init__(
        self,
        root: Path,
        options: ServerOptions | None = None,
        loading: LoadOptions | None = None,
        sampling: SamplingParams | None = None,
    ) -> None:
        self.root = root
        self.options = options or ServerOptions()
        self.loading = loading or LoadOptions()
        self.sampling = sampling or SamplingParams()
        models = root / self.options.model_dir
        models.mkdir(parents=True, exist_ok=True)
        self.data = root / self.options.data_dir
        self.data.mkdir(parents=True, exist_ok=True)
        self.access = make_access(self.options, self.data)
        self.models = ModelLibrary(models)
        self.loras = LoraLibrary(root / self.options.lora_dir)
        self.downloads = DownloadJobs(models, root / self.options.lora_dir)
        self.presets = PresetLibrary(root / "presets", self.data / "presets" if self.access.logins else None)
        self.prompts = PromptLibrary(root / "prompts")
        self.templates = TemplateLibrary(root / "prompts" / "templates")
        self.characters = CharacterLibrary(root / "characters", self.data / "characters" if self.access.logins else None)
        self.saved_options = SavedOptions(models / "config-user.yaml")
        self.engine = Engine()
        self.store = ChatStore(self.data / "textloom.sqlite3")
        self.pictures = PictureStore(self.store)
        self.replies = Replies(self.store, self.engine)
        self.training = TrainingJobs(root, self.models, self.loras)
        self.started = time.time()
        self._closing = threading.Event()
        if self.options.idle_timeout:
            threading.Thread(target=self._unload_when_idle, name="idle", daemon=True).start()

    def load_model(self, name: str, options: LoadOptions | None = None, *, stop_running: bool = False) -> LoadedModel:
        """Replace the loaded model by `name`, with what was saved for it and `options` over that. Raises UserError."""
        spec = self.models.find(name)
        merged = self.saved_options.for_model(spec.name, options if options is not None else self.loading)

        def load(report: Callable[[str], None]) -> LoadedModel:
            return choose.load(spec, merged, report)

        model = self.engine.replace(spec.name, load, stop_running=stop_running)
        log.info("loaded %s", spec.name)
        if model.chat_template and (problem := template_problem(model.chat_template)):
            log.warning("the chat template of %s fails its test: %s", spec.name, problem)
        return model

    def load_at_start(self) -> None:
        """Load the model and adapters that the command line names; a failure is logged and shown, the server goes on."""
        try:
            model = self.load_model(self.options.model)
            for lora in self.options.lora:
                model.load_adapter(lora, str(self.loras.find(lora).path))
        except UserError as error:
            log.error("%s", error.message)

    def close(self) -> None:
        """Stop what runs and give everything back."""
        self._closing.set()
        self.training.close()
        self.downloads.close()
        self.replies.close()
        self.engine.close()
        self.store.close()

    def _unload_when_idle(self) -> None:
        limit = self.options.idle_timeout * 60
        while not self._closing.wait(min(limit / 4, 15)):
            if self.engine.loaded is not None and time.monotonic() - self.engine.last_used > limit:
                log.info("unloading the model: nobody has used it for %g minutes", self.options.idle_timeout)
                self.engine.unload()
