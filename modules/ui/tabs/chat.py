"""The Text generation tab: the place where static/start.js puts the chat view."""

from __future__ import annotations

import gradio as gr

_START = """
import(new URL("chats/static/start.js", document.baseURI).href).then((chat) => chat.start(element));
"""


def build() -> None:
    gr.HTML(
        html_template='<div class="tl"></div>', js_on_load=_START, apply_default_css=False, elem_id="chat-view", padding=False
    )
