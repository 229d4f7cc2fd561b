"""The page: its tabs in order, its look, and the words it is written in."""

from __future__ import annotations

from typing import Any

import gradio as gr

from modules.app import App
from modules.i18n.catalogs import say, tables
from modules.services.preferences import Preferences
from modules.ui import uploads
from modules.ui.tabs import chat, models, parameters, session, training, writing
from modules.ui.theme import theme


def words() -> gr.I18n:
    """Gradio's own way to say which words a label has in which language."""
    table = tables()
    return gr.I18n(**table, **{"zh-CN": table["zh"], "zh-TW": table["zh"]})  # pyright: ignore[reportArgumentType]


def opens_on(app: App) -> str:
    """The tab that the page opens on for new users."""
    return Preferences(app, "").page.first_tab


def build(app: App) -> gr.Blocks:
    """All tabs. Nothing is computed here: what a tab shows is asked for when it is opened."""
    swept = (uploads.SWEEP_SECONDS, uploads.KEPT_SECONDS)
    with gr.Blocks(title="Textloom", fill_width=True, analytics_enabled=False, delete_cache=swept) as page:
        gr.HTML('<h1 class="tl-hidden">Textloom</h1>', elem_id="tl-name", apply_default_css=False, padding=False)
        with gr.Tabs(elem_id="tl-tabs", selected=opens_on(app)):
            with gr.Tab(say("tab.chat"), id="chat", elem_id="tab-chat"):
                chat.build()
            with gr.Tab(say("tab.default"), id="default", elem_id="tab-default"):
                writing.build("default")
            with gr.Tab(say("tab.notebook"), id="notebook", elem_id="tab-notebook"):
                writing.build("notebook")
            with gr.Tab(say("tab.parameters"), id="parameters", elem_id="tab-parameters") as tab:
                parameters.build(app, tab)
            with gr.Tab(say("tab.models"), id="models", elem_id="tab-models") as tab:
                models.build(app, tab)
            with gr.Tab(say("tab.training"), id="training", elem_id="tab-training") as tab:
                training.build(app, tab)
            with gr.Tab(say("tab.session"), id="session", elem_id="tab-session"):
                session.build()
    return page


def mount_options() -> dict[str, Any]:
    """What gr.mount_gradio_app is told about the look, the words and uploads. Our own style is in the page early (page_head.py)."""
    return {"theme": theme(), "i18n": words(), "max_file_size": uploads.LARGEST}
