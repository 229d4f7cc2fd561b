"""Saved prompts: prompts/NAME.txt, texts to start from."""

from __future__ import annotations

import os
from pathlib import Path

from modules.errors import Forbidden, NotFound
from modules.library.entries import named, read_bytes
from modules.library.paths import folder_of, path_inside, write_text

_WHAT = "prompt's name"


class PromptLibrary:
    """The prompts in one folder, for everybody; with `personal`, `of` gives each owner a folder of their own before it.

    shared: a folder whose prompts can be read here and not changed.
    """

    def __init__(self, folder: Path, personal: Path | None = None, *, shared: Path | None = None) -> None:
        self.folder = folder
        self._personal = personal
        self._shared = shared

    def of(self, owner: str) -> PromptLibrary:
        """What `owner` sees and may change."""
        if self._personal is None:
            return self
        return PromptLibrary(folder_of(self._personal, owner), shared=self.folder)

    def names(self) -> list[str]:
        found = {file.stem for folder in self._folders() for file in named(folder, ".txt")}
        return sorted(found, key=str.lower)

    def file(self, name: str) -> Path:
        """Where one's own prompt of that name lies, or would. Raises UserError for a name that cannot be a file."""
        return _file(self.folder, name)

    def read(self, name: str) -> str:
        """The text without the line end that closes the file. Raises NotFound, UserError."""
        path = next((path for folder in self._folders() if os.path.lexists(path := _file(folder, name))), None)
        if path is None:
            raise NotFound(f"There is no prompt called {name}. There are: {', '.join(self.names())}.", param="prompt")
        return read_bytes(path).decode("utf-8-sig", errors="replace").removesuffix("\n")

    def save(self, name: str, text: str) -> None:
        """Raises UserError for a name that cannot be a file."""
        write_text(_file(self.folder, name), text + "\n")

    def delete(self, name: str) -> None:
        """Raises NotFound, and Forbidden for a prompt that belongs to everybody."""
        path = _file(self.folder, name)
        if not os.path.lexists(path) and self._shared is not None and _file(self._shared, name).is_file():
            raise Forbidden(f"{name} belongs to everybody who uses this server, and cannot be deleted here.")
        if not os.path.lexists(path):
            raise NotFound(f"There is no prompt called {name}. There are: {', '.join(self.names())}.", param="prompt")
        path.unlink()

    def _folders(self) -> list[Path]:
        return [self.folder, self._shared] if self._shared is not None else [self.folder]


def _file(folder: Path, name: str) -> Path:
    return path_inside(folder, name, ".txt", _WHAT)
