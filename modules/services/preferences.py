"""What a user has set for themselves, and what new users start with: sampling, preset, and the page."""

from __future__ import annotations

from typing import Any

import yaml

from modules.app import App
from modules.errors import NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.library.paths import write_text
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


def sampling_of(app: App, owner: str) -> tuple[SamplingParams, str | None]:
    """(the sampling settings of `owner`, the preset they come from while nothing else was changed)."""
    kept: dict[str, Any] | None = app.store.preference(owner, "sampling")
    if kept is None:
        return default_sampling(app)
    try:
        preset = kept.get("preset")
        return SamplingParams.read(kept["values"]), preset if preset and app.presets.of(owner).has(preset) else None
    except UserError:  # settings of another version: better to start afresh than to refuse every message
        return default_sampling(app)


def set_sampling(app: App, owner: str, sampling: SamplingParams, preset: str | None) -> None:
    """Remember the settings; the preset's name only while they are what it says."""
    if preset is not None:
        try:
            same = app.presets.of(owner).read(preset) == sampling
        except UserError:
            same = False
        preset = preset if same or (preset, sampling) == default_sampling(app)[::-1] else None
    values = sampling.model_dump(mode="json", exclude_defaults=True)
    app.store.set_preference(owner, "sampling", {"values": values, "preset": preset})


def preset_changed(app: App, owner: str, name: str) -> None:
    """Settings that come from a preset are one's own from now on, where it says something else now."""
    sampling, preset = sampling_of(app, owner)
    if preset == name:
        set_sampling(app, owner, sampling, preset)


def choose_preset(app: App, owner: str, name: str) -> SamplingParams:
    """Take the settings of a preset. Raises NotFound."""
    if name not in app.presets.of(owner).names():
        raise NotFound(f"There is no preset called {name}.", param="preset")
    sampling = app.presets.of(owner).read(name)
    set_sampling(app, owner, sampling, name)
    return sampling


def user_name(app: App, owner: str) -> str:
    """What `owner` wants to be called, in conversations and by characters; empty where they have not said."""
    return str(app.store.preference(owner, "name", ""))


def set_user_name(app: App, owner: str, name: str) -> None:
    """Remember it; an empty name forgets it. Raises UserError for one that is too long."""
    name = " ".join(name.split())
    if len(name) > LONGEST_NAME:
        raise UserError(f"The name is too long: {LONGEST_NAME} letters at most.", param="name")
    app.store.set_preference(owner, "name", name or None)


def token_view(app: App, owner: str) -> bool:
    """Whether `owner` looks at the tokens of replies: their probabilities are kept then."""
    return bool(app.store.preference(owner, "token_view"))


def set_token_view(app: App, owner: str, on: bool) -> None:
    app.store.set_preference(owner, "token_view", on or None)


def page_of(app: App, owner: str) -> PageSettings:
    """What `owner` chose about the page, over what the server was started with."""
    first = PageSettings.read({"first_tab": "notebook"} if app.options.notebook and not app.options.chat else {})
    defaults = first.changed(app.page.given())
    try:
        return defaults.changed(app.store.preference(owner, "page", {}))
    except UserError:  # of another version
        return defaults


def set_page(app: App, owner: str, values: dict[str, Any]) -> PageSettings:
    """Remember choices about the page. Raises UserError for values that cannot be."""
    checked = page_of(app, owner).changed(values)
    kept = {**app.store.preference(owner, "page", {}), **values}
    app.store.set_preference(owner, "page", kept)
    return checked


def save_as_default(app: App, owner: str) -> str:
    """What `owner` has set becomes what new users start with, now and after a restart. Returns the file's name.

    Other lines of settings.yaml stay. Raises NotAllowed, and UserError where the file is not ours to read.
    """
    app.access.require_admin(owner)
    sampling, preset = sampling_of(app, owner)
    page = page_of(app, owner).changed({"preset": preset} if preset in app.presets.names() else {})
    try:
        base = app.presets.read(page.preset)
    except UserError:
        base = SamplingParams()
    over, beneath = sampling.model_dump(mode="json"), base.model_dump(mode="json")
    changed = {name: value for name, value in over.items() if value != beneath[name]}
    path = app.root / app.options.settings
    ours = {*SamplingParams.model_fields, *PageSettings.model_fields}
    others = {name: value for name, value in read_settings_file(path, required=False).items() if name not in ours}
    text = yaml.safe_dump({**others, **page.differences(), **changed}, sort_keys=False, allow_unicode=True)
    write_text(path, text)
    app.sampling, app.page = SamplingParams.read(changed), page
    return path.name
