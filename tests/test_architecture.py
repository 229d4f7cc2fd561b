"""What keeps the code easy to change: light imports, module sentences, true documents."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import settings_table

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(ROOT.glob("modules/**/*.py"))
HEAVY = ("torch", "transformers", "xllamacpp", "bitsandbytes", "gptqmodel", "peft", "accelerate", "datasets", "trl")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_a_sentence_that_says_what_it_is(path):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert doc, "no docstring"
    assert doc.splitlines()[0].endswith((".", ":")), doc.splitlines()[0]


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=str)
def test_a_package_file_holds_a_docstring_only(path):
    assert len(ast.parse(path.read_text(encoding="utf-8")).body) == 1


def test_the_table_of_settings_is_up_to_date():
    assert settings_table.PAGE.read_text(encoding="utf-8") == settings_table.current(), "run: python -m tools.settings_table"
    assert settings_table.TRAINING_PAGE.read_text(encoding="utf-8") == settings_table.training(), "run it too"


def test_the_program_says_the_version_of_the_project():
    from modules.app import VERSION

    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"] == VERSION


def imported_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_the_page_and_the_api_are_built_without_heavy_libraries(tmp_path):
    build = (
        "from pathlib import Path\nfrom modules import web\nfrom modules.app import App\n"
        "from modules.settings.server import ServerOptions\n"
        f"web.build(App(Path({str(tmp_path)!r}), ServerOptions()))"
    )
    assert not imported_by(build) & set(HEAVY)


def test_help_needs_neither_gradio_nor_fastapi():
    loaded = imported_by("import server")
    assert not loaded & {*HEAVY, "gradio", "fastapi", "uvicorn"}
