"""Every visible word of the page, by key and language: modules/ui/locales/LANGUAGE.json."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

LOCALES = Path(__file__).parent / "locales"
LANGUAGES = {"en": "English", "zh": "中文"}


@lru_cache(maxsize=1)
def tables() -> dict[str, dict[str, str]]:
    """Language → key → words."""
    return {language: json.loads((LOCALES / f"{language}.json").read_text(encoding="utf-8")) for language in LANGUAGES}
