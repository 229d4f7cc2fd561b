"""The Default and Notebook tabs: the places where static/notebook.js builds its pages."""

from __future__ import annotations

import gradio as gr

_START = """
import(new URL("chats/static/notebook.js", document.baseURI).href).then((notebook) => notebook.start(element, "NAME"));
"""


def build(name: str) -> None:
    """name: of the page, "default" or "notebook"."""
    gr.HTML(
        html_template='<div class="tl tl-plain tl-writing"></div>',
        js_on_load=_START.replace("NAME", name),
        apply_default_css=False,
        padding=False,
    )
