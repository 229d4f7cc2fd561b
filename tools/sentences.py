"""Every sentence of the server that reaches the page, as a template, out of the source: `python -m tools.sentences` lists those
that have no translation in modules/i18n/locales/sentences.LANGUAGE.json, and the translations of nothing. A test asks for both.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

MODULES = Path(__file__).resolve().parent.parent / "modules"
OF_THE_API = ("errors.py", "gradio_bodies.py", "guard.py", "limits.py")
"""Files of api/ that answer the page, as all of api/page/ do. The others answer programs, in English."""
ELSEWHERE = {
    "access.py": ["--admin-users"],  # said in the terminal before there is a page, as are those of settings/
    "api/errors.py": ["The request is wrong; the", "The server cannot do it right now"],  # stand in /openapi.json
    "generation/template.py": ["Tells the time", "What time is it", "What is in the", "A brass key", "And in the red"],  # tried
    "library/card_images.py": ["no card"],  # found by the reader itself, as are those of the next two
    "library/character_files.py": ["This card is a Character Card V3"],  # goes into cards
    "library/gguf_header.py": ["beyond the end", "unknown kind of value", "not a tensor"],
    "library/lore_keys.py": ["a pattern of"],
    "library/modes.py": ["A conversation between"],  # goes into prompts
    "library/starter.py": [  # told to the log, or in the terminal
        "is there already",
        "is there, and its",
        "is damaged and will",
        "The starter model lies",
        "Unpacking the",
        "Fetching the",
        "lies in",
    ],
    "training/formats.py": ["Whole texts by the columns"],
    "training/worker/__main__.py": ["Train what a run"],
    "ui/login.py": [""],  # has its own words in each language
    "api/page/markdown.py": [""],  # patterns
}
"""Where a sentence with these words does not reach the page."""
TERMINAL = (
    "library/meta.py",
    "library/meta_download.py",
    "library/terminal.py",
    "settings/command_line.py",
    "settings/logins.py",
    "settings/ports.py",
    "settings/retired.py",
    "settings/server.py",
    "settings/tables.py",
    "tunnel.py",
    "web.py",
)
SAYS = {"report", "Noted", "Failed", "Done", "ManagerStatus", "Problem", "ValueError"}
"""What is handed to these is shown, as what is handed to a UserError is."""
NOT_SAID = re.compile(r"^(log|logger|logging|warnings)\.|^(print|add_argument|Query|Field|execute|ArgumentParser)$")
SENTENCE = re.compile(r"""(?s)["“A-Z{'].*\s.*[.…?!]['"”]?""")
OF_OTHERS = re.compile(
    r"Input should |Expecting |Unterminated string|Invalid (control|\\)|Extra data$|Permission denied$|Read-only file system$"
    r"|Not a directory$|Input/output error$"
)
"""What pydantic, Python's JSON and the operating system say, which becomes a part of our sentences."""
SQL = re.compile(r"^(?:\{1\} )?(SELECT|INSERT|UPDATE|DELETE|CREATE|BEGIN)\b|\b(IS NULL|FROM|MATCH|LIMIT) \?")


def template_of(node: ast.expr) -> str | None:
    """A text of the source with {1}, {2}, … for its values; None for what is no text.

    >>> template_of(ast.parse("f'{name} has {len(rows)} rows.'", mode="eval").body)
    '{1} has {2} rows.'
    """
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if not isinstance(node, ast.JoinedStr):
        return None
    parts, values = [], 0
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        else:
            values += 1
            parts.append(f"{{{values}}}")
    return "".join(parts)


def texts_of(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """(text, whether it is said to people) for all texts but docstrings and what goes to the log."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if NOT_SAID.search(name) or NOT_SAID.search(name.rpartition(".")[2]):
            continue
        if isinstance(node, ast.Call) and _says(name.rpartition(".")[2]):
            handed = (*node.args, *(keyword.value for keyword in node.keywords if keyword.arg in ("reason", "error")))
            yield from ((text, True) for value in handed if (text := template_of(value)) and " " in text)
        if (text := template_of(node) if isinstance(node, ast.expr) else None) is not None:
            yield text, bool(SENTENCE.fullmatch(text)) and not SQL.search(text)
            for part in getattr(node, "values", ()):
                yield from texts_of(part)
        else:
            yield from texts_of(node)


def _says(name: str) -> bool:
    import modules.errors

    return name in SAYS or isinstance(getattr(modules.errors, name, None), type)


def _words(text: str) -> int:
    """How many words of its own a template has."""
    return len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\{\w+\}", " ", text)))


@lru_cache(maxsize=1)
def collect() -> tuple[dict[str, str], set[str]]:
    """(sentence → file, for each that reaches the page; every text of the source)."""
    said: dict[str, str] = {}
    everything: set[str] = set()
    for path in sorted(MODULES.rglob("*.py")):
        file = path.relative_to(MODULES).as_posix()
        here = file not in TERMINAL and not (path.parent.name in ("api", "legacy") and path.name not in OF_THE_API)
        for text, shown in texts_of(ast.parse(path.read_text(encoding="utf-8"))):
            everything.add(text)
            exempt = any(words in text for words in ELSEWHERE.get(file, ()))
            if shown and here and not exempt and _words(text) > 1:
                said.setdefault(text, file)
    return said, everything


def table_of(language: str) -> dict[str, str]:
    return json.loads((MODULES / "i18n" / "locales" / f"sentences.{language}.json").read_text(encoding="utf-8"))


def missing(language: str) -> dict[str, str]:
    """Sentence → file, for each that has no translation."""
    said, _ = collect()
    known = table_of(language)
    return {text: file for text, file in said.items() if text not in known}


def left_over(language: str) -> list[str]:
    """Translations of what neither the source nor OF_OTHERS says."""
    _, everything = collect()
    return [text for text in table_of(language) if text not in everything and not OF_OTHERS.match(text)]


if __name__ == "__main__":
    for text, file in missing("zh").items():
        print(f'{file}: {json.dumps(text, ensure_ascii=False)}: "",')
    for text in left_over("zh"):
        print("of nothing:", json.dumps(text, ensure_ascii=False))
