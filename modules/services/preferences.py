"""What a user has set for themselves, and what new users start with: sampling, preset, and the page."""

from __future__ import annotations

from typing import Any

import yaml

from modules.app import App
from modules.errors import NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.library.paths import write_text
from modules.library.trash import Undo
from modules.services.base import Service
from modules.settings.command_line import read_settings_file
from modules.settings.page import PageSettings

LONGEST_NAME = 80


def default_sampling(app: App) -> tuple[SamplingParams, str | None]:
    """What a new user starts with: the default preset, with what the server was started with over it."""
    try:
        preset, name = app.presets.read(app.page.preset), app.page.preset
    except UserError:
        preset, name = SamplingParams(), None
    return preset.changed(app.sampling.given()), name


class Preferences(Service):
    """What a user chose for themselves, over what new users start with."""

    @property
    def sampling(self) -> tuple[SamplingParams, str | None]:
        """(the sampling settings of the user, the preset they come from while nothing else was changed)."""
        kept: dict[str, Any] | None = self.history.preferences.get("sampling")
        if kept is None:
            return default_sampling(self.app)
        try:
            preset = kept.get("preset")
            return SamplingParams.read(kept["values"]), preset if preset and self.app.presets.of(self.owner).has(
                preset
            ) else None
        except UserError:  # settings of another version: better to start afresh than to refuse every message
            return default_sampling(self.app)

    def set_sampling(self, sampling: SamplingParams, preset: str | None) -> None:
        """Remember the settings; the preset's name only while they are what it says."""
        if preset is not None:
            try:
                same = self.app.presets.of(self.owner).read(preset) == sampling
            except UserError:
                same = False
            preset = preset if same or (preset, sampling) == default_sampling(self.app)[::-1] else None
        values = sampling.model_dump(mode="json", exclude_defaults=True)
        self.history.preferences.set("sampling", {"values": values, "preset": preset})

    def presets(self) -> list[str]:
        """The names of everybody's presets and one's own."""
        return self.app.presets.of(self.owner).names()

    def choose_preset(self, name: str) -> SamplingParams:
        """Take the settings of a preset. Raises NotFound."""
        if name not in self.presets():
            raise NotFound(f"There is no preset called {name}.", param="preset")
        sampling = self.app.presets.of(self.owner).read(name)
        self.set_sampling(sampling, name)
        return sampling

    def save_preset(self, name: str) -> Undo:
        """Keep the sampling settings as a preset. Raises UserError."""
        presets, (sampling, _) = self.app.presets.of(self.owner), self.sampling
        with self.app.trash.undoable(self.owner, "preset", name, [presets.file(name)]) as undo:
            presets.save(name, sampling)
        self.set_sampling(sampling, name)
        return undo

    def delete_preset(self, name: str) -> Undo:
        """Delete a preset; settings that come from it stay. Raises NotFound."""
        presets = self.app.presets.of(self.owner)
        with self.app.trash.undoable(self.owner, "preset", name, [presets.file(name)]) as undo:
            presets.delete(name)
        self.preset_changed(name)
        return undo

    def preset_changed(self, name: str) -> None:
        """Settings that come from a preset are one's own from now on, where it says something else now; the page is told."""
        sampling, preset = self.sampling
        kept = self.history.preferences.get("sampling")
        if preset == name:
            self.set_sampling(sampling, preset)
        elif kept is not None and kept.get("preset") == name:  # it is gone, and its Undo brings it back as the user's choice
            self.history.preferences.set("sampling", kept)

    @property
    def user_name(self) -> str:
        """What the user wants to be called, in conversations and by characters; empty where they have not said."""
        return str(self.history.preferences.get("name", ""))

    def set_user_name(self, name: str) -> None:
        """Remember it; an empty name forgets it. Raises UserError for one that is too long."""
        name = " ".join(name.split())
        if len(name) > LONGEST_NAME:
            raise UserError(f"The name is too long: {LONGEST_NAME} letters at most.", param="name")
        self.history.preferences.set("name", name or None)

    @property
    def token_view(self) -> bool:
        """Whether the user looks at the tokens of replies: their probabilities are kept then."""
        return bool(self.history.preferences.get("token_view"))

    def set_token_view(self, on: bool) -> None:
        self.history.preferences.set("token_view", on or None)

    @property
    def page(self) -> PageSettings:
        """What the user chose about the page, over what the server was started with."""
        first = PageSettings.read({"first_tab": "notebook"} if self.app.options.notebook and not self.app.options.chat else {})
        defaults = first.changed(self.app.page.given())
        try:
            return defaults.changed(self.history.preferences.get("page", {}))
        except UserError:  # of another version
            return defaults

    def set_page(self, values: dict[str, Any]) -> PageSettings:
        """Remember choices about the page. Raises UserError for values that cannot be."""
        checked = self.page.changed(values)
        kept = {**self.history.preferences.get("page", {}), **values}
        self.history.preferences.set("page", kept)
        return checked

    def save_as_default(self) -> str:
        """What the user has set becomes what new users start with, now and after a restart. Returns the file's name.

        Other lines of settings.yaml stay. Raises NotAllowed, and UserError where the file is not ours to read.
        """
        self.require_admin()
        sampling, preset = self.sampling
        page = self.page.changed({"preset": preset} if preset in self.app.presets.names() else {})
        try:
            base = self.app.presets.read(page.preset)
        except UserError:
            base = SamplingParams()
        over, beneath = sampling.model_dump(mode="json"), base.model_dump(mode="json")
        changed = {name: value for name, value in over.items() if value != beneath[name]}
        path = self.app.root / self.app.options.settings
        ours = {*SamplingParams.model_fields, *PageSettings.model_fields}
        others = {name: value for name, value in read_settings_file(path, required=False).items() if name not in ours}
        text = yaml.safe_dump({**others, **page.differences(), **changed}, sort_keys=False, allow_unicode=True)
        write_text(path, text)
        self.app.sampling, self.app.page = SamplingParams.read(changed), page
        return path.name
