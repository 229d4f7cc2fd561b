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
from modules.services.base import Service
from modules.services.preferences import Preferences
from modules.settings.page import PageSettings

OF_ADMINS = ("loading", "engine", "run", "adapter", "defaults")
"""Kinds of things that only administrators change."""


def told(undo: Undo, words: str, **values: object) -> dict[str, Any]:
    """What the page says of a change: the key of the words, their values, and the id of its undo, if there is one."""
    return {"words": words, "values": values, "undo": undo.id}


class UndoHistory(Service):
    """What a user deleted or overwrote."""

    def all(self) -> list[dict[str, Any]]:
        """What can be put back, the latest first."""
        return [view(kept) for kept in self.app.trash.all(self.owner)]

    def forget(self, id_: str) -> None:
        """Delete it for good. Raises NotFound."""
        self.app.trash.forget(self.owner, id_)

    def told_settings(self, before: tuple[SamplingParams, str | None]) -> dict[str, Any] | None:
        """What the page says where settings that are kept nowhere else were replaced; before: they, as of Preferences.sampling."""
        sampling, preset = before
        if preset is not None or sampling in (SamplingParams(), self.of(Preferences).sampling[0]):
            return None
        settings = {"values": sampling.model_dump(mode="json", exclude_defaults=True)}
        return {"words": "parameters.replaced", "values": {}, "settings": settings}

    @contextmanager
    def defaults(self) -> Iterator[Undo]:
        """Around what changes what new users start with."""
        file = self.app.options.settings
        with self.app.trash.undoable(self.owner, "defaults", file, [self.app.root / file]) as undo:
            undo.note = _defaults(self.app)
            yield undo

    def restore(self, id_: str) -> dict[str, Any]:
        """Put it back, everywhere where it is shown. Raises NotFound, and Forbidden for what is an administrator's."""
        kept = self.app.trash.get(self.owner, id_)
        if kept.kind in OF_ADMINS:
            self.require_admin()
        match kept.kind:
            case "character":
                renamed = [str(name) for name in kept.note.get("renamed", ())]
                now = [path for one in {kept.note["id"], *renamed} for path in self.app.characters.files(self.owner, one)]
                self.app.trash.restore(self.owner, id_, {**kept.note, "renamed": renamed[::-1]}, replaced=now)
                if renamed:
                    self.history.chats.replace_setting("character", renamed[1], renamed[0])
            case "loading" if self._others_changed(kept):
                with self.app.trash.undoable(self.owner, kept.kind, kept.name, [self.app.saved_options.path]):
                    self.app.saved_options.take_back(kept.name, _loading_before(kept))
                self.app.trash.forget(self.owner, id_)
            case "defaults":
                self.app.trash.restore(self.owner, id_, _defaults(self.app))
                self.app.sampling = SamplingParams.read(kept.note["sampling"])
                self.app.page = PageSettings.read(kept.note["page"])
            case "run":
                self.app.trash.restore(self.owner, id_)
                self.app.training.watch_queue()
            case _:
                self.app.trash.restore(self.owner, id_)
        if kept.kind == "preset":
            self.of(Preferences).preset_changed(kept.name)
        return view(kept)

    def _others_changed(self, kept: Kept) -> bool:
        """Whether how other models are loaded has changed since: all are in one file."""
        try:
            return self.app.saved_options.others(kept.name) != _loading_before(kept).others(kept.name)
        except UserError:  # one of them is damaged
            return False


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


def _loading_before(kept: Kept) -> SavedOptions:
    return SavedOptions(next(piece.kept for piece in kept.pieces if piece.kept))


def _defaults(app: App) -> dict[str, Any]:
    kept = {"sampling": app.sampling, "page": app.page}
    return {name: one.model_dump(mode="json", include=set(one.model_fields_set)) for name, one in kept.items()}
