"""What was deleted or overwritten on the page: each with its undo, the list of all, and how it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modules.app import App
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.library.trash import Kept, Undo
from modules.loaders.saved_options import SavedOptions
from modules.services import preferences
from modules.settings.page import PageSettings

OF_ADMINS = ("loading", "engine", "run", "adapter", "defaults")
"""Kinds of things that only administrators change."""


def told(undo: Undo, words: str, **values: object) -> dict[str, Any]:
    """What the page says of a change: the key of the words, their values, and the id of its undo, if there is one."""
    return {"words": words, "values": values, "undo": undo.id}


def told_settings(app: App, owner: str, before: tuple[SamplingParams, str | None]) -> dict[str, Any] | None:
    """What the page says where settings that are kept nowhere else were replaced; before: they, as of `sampling_of`."""
    sampling, preset = before
    if preset is not None or sampling in (SamplingParams(), preferences.sampling_of(app, owner)[0]):
        return None
    settings = {"values": sampling.model_dump(mode="json", exclude_defaults=True)}
    return {"words": "parameters.replaced", "values": {}, "settings": settings}


@contextmanager
def undoable_character(app: App, owner: str, id_: str) -> Iterator[Undo]:
    """Around what changes or deletes a character."""
    files = app.characters.files(owner, id_)
    with app.trash.undoable(owner, "character", character_name(app, owner, id_), files) as undo:
        undo.note = {"id": id_}
        yield undo


def character_name(app: App, owner: str, id_: str) -> str:
    """What people call a character; its id where it cannot be read."""
    try:
        return app.characters.read(owner, id_).name
    except UserError:
        return id_


@contextmanager
def undoable_defaults(app: App, owner: str) -> Iterator[Undo]:
    """Around what changes what new users start with."""
    with app.trash.undoable(owner, "defaults", app.options.settings, [app.root / app.options.settings]) as undo:
        undo.note = _defaults(app)
        yield undo


def delete_run(app: App, owner: str, id_: str) -> Undo:
    """Take the folder of a run away. Raises NotFound, Conflict."""
    folder, name = app.training.deletable(id_), app.training.get(id_).name
    with app.trash.undoable(owner, "run", name, [folder.path]) as undo:
        pass
    return undo


def view(kept: Kept) -> dict[str, Any]:
    return {
        "id": kept.id,
        "kind": kept.kind,
        "name": kept.name,
        "at": kept.at,
        "size": kept.size,
        "overwritten": kept.overwritten,
        "shipped": kept.shipped,
    }


def restore(app: App, owner: str, id_: str) -> dict[str, Any]:
    """Put it back, everywhere where it is shown. Raises NotFound, and Forbidden for what is an administrator's."""
    kept = app.trash.get(owner, id_)
    if kept.kind in OF_ADMINS:
        app.access.require_admin(owner)
    match kept.kind:
        case "character":
            renamed = [str(name) for name in kept.note.get("renamed", ())]
            now = [path for one in {kept.note["id"], *renamed} for path in app.characters.files(owner, one)]
            app.trash.restore(owner, id_, {**kept.note, "renamed": renamed[::-1]}, replaced=now)
            if renamed:
                app.store.replace_setting(owner, "character", renamed[1], renamed[0])
        case "loading" if _others_changed(app, kept):
            with app.trash.undoable(owner, kept.kind, kept.name, [app.saved_options.path]):
                app.saved_options.take_back(kept.name, _loading_before(kept))
            app.trash.forget(owner, id_)
        case "defaults":
            app.trash.restore(owner, id_, _defaults(app))
            app.sampling = SamplingParams.read(kept.note["sampling"])
            app.page = PageSettings.read(kept.note["page"])
        case "run":
            app.trash.restore(owner, id_)
            app.training.watch_queue()
        case _:
            app.trash.restore(owner, id_)
    if kept.kind == "preset":
        preferences.preset_changed(app, owner, kept.name)
    return view(kept)


def _loading_before(kept: Kept) -> SavedOptions:
    return SavedOptions(next(piece.kept for piece in kept.pieces if piece.kept))


def _others_changed(app: App, kept: Kept) -> bool:
    """Whether how other models are loaded has changed since: all are in one file."""
    try:
        return app.saved_options.others(kept.name) != _loading_before(kept).others(kept.name)
    except UserError:  # one of them is damaged
        return False


def _defaults(app: App) -> dict[str, Any]:
    kept = {"sampling": app.sampling, "page": app.page}
    return {name: one.model_dump(mode="json", include=set(one.model_fields_set)) for name, one in kept.items()}
