"""Which test files depend on what was changed: by imports, by the names of scripts and data that a file mentions, by conftest.

Errs towards too many: a file that nothing names is taken for one that everything needs.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

EVERYTHING = ("pyproject.toml", "test.sh", ".ci/", "requirements", "tests/conftest.py", "tests/harness/", "tools/")
NOTHING = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", ".gitignore", "benchmarks/")
_DOTTED = re.compile(r"\b(?:modules|tests)(?:\.\w+)+")


def tests_of(root: Path, revision: str = "") -> tuple[list[str], str]:
    """The test files to run for what differs from `revision`, and a sentence about it."""
    since = revision or _git(root, "merge-base", "HEAD", "@{upstream}", fails="HEAD")
    changed = {
        *_git(root, "diff", "--name-only", since).split("\n"),
        *_git(root, "ls-files", "--others", "--exclude-standard").split("\n"),
    } - {""}
    tree = Tree(root, _git(root, "ls-files", "--cached", "--others", "--exclude-standard").split("\n"))
    tests = tree.tests_of(changed)
    return tests, f"{len(changed)} files differ from {since[:12]}: {len(tests)} of {len(tree.tests)} test files depend on them."


def _git(root: Path, *words: str, fails: str | None = None) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        if fails is None:
            raise SystemExit(f"git {' '.join(words)}: {done.stderr.strip()}")
        return fails
    return done.stdout.strip()


class Tree:
    """The files of a checkout, and which of them each one needs. Paths are relative to its root, with slashes."""

    def __init__(self, root: Path, paths: Iterable[str]) -> None:
        self._root = root
        self._paths = sorted(path for path in paths if path and (root / path).is_file())
        self.tests = [
            path for path in self._paths if path.startswith("tests/") and PurePosixPath(path).name.startswith("test_")
        ]

    def tests_of(self, changed: Iterable[str]) -> list[str]:
        """The test files that need any of the changed ones, themselves among them."""
        reached: set[str] = set()
        waiting: list[str] = []
        for path in changed:
            if path.startswith(EVERYTHING):
                return self.tests
            if path.startswith(NOTHING):
                continue
            found = [path] if path in self._texts else self._mention(path)
            if path not in self._paths or not found:
                return self.tests
            waiting += found
        while waiting:
            path = waiting.pop()
            if path not in reached:
                reached.add(path)
                waiting += self._needed_by[path]
        return [path for path in self.tests if path in reached]

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {path: (self._root / path).read_text(encoding="utf-8") for path in self._paths if path.endswith(".py")}

    @cached_property
    def _modules(self) -> dict[str, str]:
        """The path of each dotted name."""
        return {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in self._texts}

    @cached_property
    def _needed_by(self) -> dict[str, set[str]]:
        users = defaultdict(set, self._needed_by_import)
        for path in self._texts:
            users[path] |= set(self._mention(path))
        return users

    @cached_property
    def _needed_by_import(self) -> dict[str, set[str]]:
        users: dict[str, set[str]] = defaultdict(set)
        for path, text in self._texts.items():
            for needed in {*self._imports(text), *self._conftests(path)} - {path}:
                users[needed].add(path)
        return users

    def _imports(self, text: str) -> Iterator[str]:
        names = set(_DOTTED.findall(text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        for name in names:
            parts = name.split(".")
            for count in range(1, len(parts) + 1):
                if path := self._modules.get(".".join(parts[:count])):
                    yield path

    def _conftests(self, path: str) -> Iterator[str]:
        for folder in PurePosixPath(path).parents:
            if (conftest := f"{folder}/conftest.py") in self._texts:
                yield conftest

    def _mention(self, path: str) -> list[str]:
        """The Python files that use a script or data by its name: those that name it, the package that it lies in, its folders."""
        name = PurePosixPath(path)
        if name.name.startswith(("test_", "conftest", "__")) or ("/" in path and self._needed_by_import[path]):
            return []
        found = self._with_word(name.name, path)
        if path.startswith("modules/"):
            return found + self._package(name)
        words = (folder.name for folder in name.parents if folder.name not in ("", "tests"))
        return found or next((found for word in words if (found := self._with_word(word, path))), [])

    def _package(self, name: PurePosixPath) -> list[str]:
        for folder in name.parents:
            if found := [other for other in self._texts if PurePosixPath(other).parent == folder]:
                return found
        return []

    def _with_word(self, word: str, path: str) -> list[str]:
        pattern = re.compile(rf"""["'/ ]{re.escape(word)}["'/ ,)]""")
        return [other for other, text in self._texts.items() if other != path and pattern.search(text)]
