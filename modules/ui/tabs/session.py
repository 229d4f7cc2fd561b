"""The Session tab: theme, language, keyboard, and what this server runs."""

from __future__ import annotations

import gradio as gr

_START = """
import(new URL("chats/static/session.js", document.baseURI).href).then((session) => session.start(element));
"""


def build() -> None:
    gr.HTML(
        html_template='<div class="tl tl-plain tl-session"></div>', js_on_load=_START, apply_default_css=False, padding=False
    )
