"""Saved prompts: prompts/NAME.txt, texts to start from."""

from __future__ import annotations

from pathlib import Path

from modules.errors import NotFound
from modules.library.places import path_inside, write_text

_WHAT = "prompt's name"


class PromptLibrary:
    """The prompts in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        return sorted((file.stem for file in self.folder.glob("*.txt") if not file.name.startswith(".")), key=str.lower)

    def read(self, name: str) -> str:
        """The text without the line end that closes the file. Raises NotFound."""
        return self._existing(name).read_text(encoding="utf-8", errors="replace").removesuffix("\n")

    def save(self, name: str, text: str) -> None:
        """Raises UserError for a name that cannot be a file."""
        write_text(path_inside(self.folder, name, ".txt", _WHAT), text + "\n")

    def delete(self, name: str) -> None:
        """Raises NotFound."""
        self._existing(name).unlink()

    def _existing(self, name: str) -> Path:
        path = path_inside(self.folder, name, ".txt", _WHAT)
        if not path.is_file():
            raise NotFound(f"There is no prompt called {name}. There are: {', '.join(self.names())}.", param="prompt")
        return path
