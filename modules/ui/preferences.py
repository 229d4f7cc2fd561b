"""What a user has set for themselves: sampling, preset and what the page remembers."""

from __future__ import annotations

from typing import Any

from modules.app import App
from modules.errors import NotFound, UserError
from modules.generation.sampling import SamplingParams
from modules.library.characters import LONGEST_NAME

DEFAULT_PRESET = "simple-1"


def default_sampling(app: App) -> tuple[SamplingParams, str | None]:
    """What a new user starts with: the default preset, with what the server was started with over it."""
    try:
        preset, name = app.presets.read(DEFAULT_PRESET), DEFAULT_PRESET
    except UserError:
        preset, name = SamplingParams(), None
    return preset.changed(app.sampling.given()), name


def sampling_of(app: App, owner: str) -> tuple[SamplingParams, str | None]:
    """(the sampling settings of `owner`, the preset they come from while nothing else was changed)."""
    kept: dict[str, Any] | None = app.store.preference(owner, "sampling")
    if kept is None:
        return default_sampling(app)
    try:
        return SamplingParams.read(kept["values"]), kept.get("preset")
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
