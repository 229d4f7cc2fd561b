"""Every visible word is there in every language."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modules.i18n import catalogs
from modules.ui import page_head

UI = Path(page_head.__file__).parent
KEYS = sorted(catalogs.tables()["en"])


@pytest.mark.parametrize("language", [language for language in catalogs.LANGUAGES if language != "en"])
def test_no_word_is_missing_or_left_over(language: str):
    table = catalogs.tables()[language]
    assert set(KEYS) - set(table) == set(), "these have no translation"
    assert set(table) - set(KEYS) == set(), "these are translations of nothing"
    assert [key for key, text in table.items() if not text.strip()] == []


@pytest.mark.parametrize("language", [language for language in catalogs.LANGUAGES if language != "en"])
def test_translations_keep_the_places_for_values(language: str):
    english, table = catalogs.tables()["en"], catalogs.tables()[language]
    places = re.compile(r"\{\w+\}")
    settings = re.compile(r"(^|\.)setting\.")
    different = [
        key for key in KEYS if not settings.search(key) and set(places.findall(english[key])) != set(places.findall(table[key]))
    ]
    assert different == []


def test_every_word_that_the_scripts_and_tabs_ask_for_exists():
    asked: set[str] = set()
    for script in (UI / "static").rglob("*.js"):
        asked |= set(re.findall(r'\bt\("([^"$]+)"', script.read_text(encoding="utf-8")))
    for module in UI.rglob("*.py"):
        asked |= set(re.findall(r'\bsay\("([^"{]+)"\)', module.read_text(encoding="utf-8")))
    assert len(asked) > 100
    assert asked - set(KEYS) == set()


def test_asking_for_an_unknown_word_is_a_mistake():
    with pytest.raises(KeyError):
        catalogs.say("no.such.word")
