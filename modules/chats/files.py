"""Text files that people attach to a message: named blocks at the beginning of its content, and found there again.

So they are part of what the model reads, of every search, and of every form that chats are exported in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from modules.errors import UserError

MOST_FILES = 16
MOST_CHARACTERS = 1_000_000
"""Of all files of one message."""
LONGEST_NAME = 200
_HEAD = re.compile(r"File: ([^\n]+)\n(`{3,})[\w+#-]*\n")
_LANGUAGE = re.compile(r"\.([\w+#-]{1,15})")


@dataclass(frozen=True)
class TextFile:
    """A file by the name that it had, and its text with \\n at the ends of lines."""

    name: str
    text: str


def attached(name: str, text: str) -> TextFile:
    """A file as it came from a browser. Raises UserError where there is nothing in it that could be read."""
    name = " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())[:LONGEST_NAME] or "text"
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise UserError(f"{name} is no text file.", param="files")
    if not text.strip():
        raise UserError(f"{name} is empty.", param="files")
    return TextFile(name, text)


def joined(files: Sequence[TextFile], words: str) -> str:
    """The content of a message: its files, each in a fence that is longer than any within, then what was said.

    Raises UserError for too many files, or too long ones.

    >>> print(joined([TextFile("a.csv", "x,y\\n1,2\\n")], "Add them."))
    File: a.csv
    ```csv
    x,y
    1,2
    ```
    <BLANKLINE>
    Add them.
    """
    if len(files) > MOST_FILES:
        raise UserError(f"A message can have {MOST_FILES} files.", param="files")
    if (length := sum(len(file.text) for file in files)) > MOST_CHARACTERS:
        raise UserError(
            f"The files have {length:,} characters; {MOST_CHARACTERS:,} are the most of one message. Attach the part that matters.",
            param="files",
        )
    return "\n\n".join([*map(_block, files), *([words.strip()] if words.strip() else [])])


def _block(file: TextFile) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", file.text)), default=0))
    language = _LANGUAGE.fullmatch(PurePath(file.name).suffix)
    end = "" if file.text.endswith("\n") else "\n"
    return f"File: {file.name}\n{fence}{language[1].lower() if language else ''}\n{file.text}{end}{fence}"


def split(content: str) -> tuple[list[TextFile], str]:
    """(the files of a message's content, what was said with them).

    >>> split(joined([TextFile("a.md", "```\\nx\\n```")], "So?"))
    ([TextFile(name='a.md', text='```\\nx\\n```\\n')], 'So?')
    """
    files: list[TextFile] = []
    at = 0
    while head := _HEAD.match(content, at):
        end = content.find(f"\n{head[2]}", head.end() - 1)
        after = end + 1 + len(head[2])
        if end < 0 or (after < len(content) and not content.startswith("\n\n", after)):
            break
        files.append(TextFile(head[1], content[head.end() : end + 1]))
        at = min(len(content), after + 2)
    return files, content[at:]


def words_of(content: str) -> str:
    """What was said, or the names of the files where nothing was."""
    files, words = split(content)
    return words if words.strip() else ", ".join(file.name for file in files)
