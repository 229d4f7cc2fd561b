"""Every visible word of the page, by key and language: modules/i18n/locales/LANGUAGE.json, and the help of the settings."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from modules.generation.sampling import SamplingParams
from modules.loaders.options import LoadOptions
from modules.settings.declare import Settings, hints_of
from modules.settings.page import PageSettings
from modules.training.config import TrainingConfig

if TYPE_CHECKING:
    from gradio.i18n import I18nData

LOCALES = Path(__file__).parent / "locales"
LANGUAGES = {"en": "English", "zh": "中文"}
SETTINGS: dict[type[Settings], str] = {SamplingParams: "", LoadOptions: "", PageSettings: "page.", TrainingConfig: "training."}
"""Class → what stands before its keys, where another class has settings of the same names."""


@lru_cache(maxsize=1)
def tables() -> dict[str, dict[str, str]]:
    """Language → key → words. English names and help of settings come from where they are declared."""
    read = {language: json.loads((LOCALES / f"{language}.json").read_text(encoding="utf-8")) for language in LANGUAGES}
    read["en"] = {**declared(), **read["en"]}
    return read


def declared() -> dict[str, str]:
    """The words that the settings classes bring: setting.NAME, setting.NAME.help, group.NAME (before them the class's prefix)."""
    words: dict[str, str] = {}
    for cls, prefix in SETTINGS.items():
        for name, info in cls.model_fields.items():
            label = name.replace("_", " ")
            words[f"{prefix}setting.{name}"] = label[0].upper() + label[1:]
            words[f"{prefix}setting.{name}.help"] = info.description or ""
            group = hints_of(info).group
            words[f"group.{group}"] = group
    return words


def script_words() -> dict[str, dict[str, str]]:
    """What the chat view's own script says: all but the settings."""
    return {
        language: {key: words for key, words in table.items() if "setting." not in key} for language, table in tables().items()
    }


def say(key: str) -> I18nData:
    """The words of `key` in the language of whoever looks; Gradio puts them in."""
    from gradio.i18n import I18nData

    if key not in tables()["en"]:
        raise KeyError(key)
    return I18nData(key)
