"""What people choose about the page itself. The server's own values are what new users start with."""

from __future__ import annotations

from typing import Literal

from modules.settings.declare import Settings, setting

Tab = Literal["chat", "default", "notebook", "parameters", "models", "training", "session"]


class PageSettings(Settings):
    """Each user's own; flags and settings.yaml say what new users start with."""

    preset: str = setting("simple-1", group="Page")
    """The preset that new users start with."""
    stream: bool = setting(True, group="Page")
    """Show replies while they are written; off shows each when it is finished."""
    first_tab: Tab = setting("chat", group="Page")
    """The tab that the page opens on."""
    theme: Literal["auto", "light", "dark"] = setting("auto", group="Page")
    """Light or dark; auto is as the system has it."""
    language: Literal["auto", "en", "zh"] = setting("auto", group="Page")
    """The language of the page; auto is the browser's."""
