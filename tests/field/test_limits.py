"""What a stranger sends cannot take more than its share: templates, YAML, zip files, bodies, connections."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modules.errors import UserError
from modules.generation.template import check_template, render_chat
from modules.generation.types import Message
from tests.fakes import CHATML

ROOT = Path(__file__).resolve().parent.parent.parent
INPUTS = Path(__file__).parent / "inputs"
LONG = {
    "DEEP": "(" * 5000 + "1" + ")" * 5000,
    "DEEPFOR": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "LONGNUMBER": "9" * 10_000,
    "LONGSOURCE": "{{ a }}" * 100_000,
}
HOSTILE: dict[str, str] = json.loads((INPUTS / "hostile_templates.json").read_text(encoding="utf-8"))


def written_out(source: str) -> str:
    for name, text in LONG.items():
        source = source.replace(name, text) if source in (name, f"{{{{ {name} }}}}") else source
    return source


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """What rendering each hostile template came to, in one process that may have a gigabyte, and seconds for each."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.field.templates_at_work"],
        input=json.dumps([written_out(source) for source in HOSTILE.values()]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    return dict(zip(HOSTILE, lines + [["died", told.stderr[-300:]]] * (len(HOSTILE) - len(lines)), strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_with_a_sentence(outcomes, name):
    outcome, said = outcomes[name]
    assert outcome == "refused", said
    assert said.startswith("The chat template ")
    assert len(said) < 700


def test_long_conversations_are_no_attack():
    turns = [Message("user", "word " * 20)] * 100_000
    assert render_chat(CHATML, turns).count("<|im_start|>") == 100_001


def test_a_long_text_is_no_attack():
    text = "你好 hello " * 1_000_000
    thinking = "{% for m in messages %}{{ '<|u|>' + m.content.split('</think>')[-1].strip() + '<|e|>' }}{% endfor %}"
    assert len(render_chat(thinking, [Message("user", text)])) > len(text)


@pytest.mark.parametrize(
    "file",
    sorted(path.name for path in (ROOT / "prompts" / "templates").glob("*.jinja")),
)
def test_the_shipped_templates_render_a_long_chat(file):
    source = (ROOT / "prompts" / "templates" / file).read_text(encoding="utf-8")
    turns = [Message("user" if at % 2 == 0 else "assistant", f"turn {at}") for at in range(2001)]
    assert "turn 2000" in render_chat(source, turns)


def test_what_jinja_can_do_it_still_can():
    source = (
        "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages | reverse %}{% set ns.n = ns.n + m.content | length %}"
        "{% set ns.seen = ns.seen + [m.role] %}{% endfor %}{{ ns.n }} {{ ns.seen | join(', ') }} {{ '%s-%03d' | format('a', 7) }} "
        "{{ '{}:{x}'.format(1, x=2) }} {{ '{a}'.format_map({'a': 5}) }} {{ [3, 1, 2] | sort | tojson }} {{ [1, 2, 3] | sum }} "
        "{{ messages | map(attribute='role') | join('|') }} {{ 'ab' * 2 ~ 1 ~ none }} {{ 'a,b'.split(',')[1] }} "
        "{{ messages[1:] | length }} {{ {'a': [1, {'b': 2}]} | tojson(indent=1) }} {{ 2 ** 10 }} {{ 7 % 4 }} "
        "{{ 'x' | center(3) }}{{ ('a' ~ '\\n' ~ 'b') | indent(2) }} {{ messages[0].role == messages[-1].role }} "
        "{{ [1, 2] == [1, 2] and 1 < 2 < 3 }} {{ 'é' | tojson }}"
    )
    text = render_chat(source, [Message("user", "abc"), Message("assistant", "de")])
    assert text == (
        '5 assistant, user a-007 1:2 5 [1, 2, 3] 6 user|assistant abab1None b 1 {\n "a": [\n  1,\n  {\n   "b": 2\n  }\n ]\n} '
        '1024 3  x a\n  b False True "é"'
    )


def test_a_template_that_python_cannot_compile_is_told():
    with pytest.raises(UserError, match=r"^The chat template cannot be read: "):
        check_template(written_out("DEEPFOR"))
