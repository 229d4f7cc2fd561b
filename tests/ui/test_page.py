"""The page as it is built."""

from __future__ import annotations

import asyncio
from pathlib import Path

import gradio as gr
import pytest

from modules import web
from modules.errors import UserError
from modules.ui.events import told
from tests.in_process import make_app


def test_building_it_leaves_no_event_loop_open(tmp_path: Path, monkeypatch) -> None:
    """Gradio makes one for each of its locks where none is running: three files that stay open each."""
    make, made = asyncio.new_event_loop, []
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(make()) or made[-1])
    app = make_app(tmp_path)
    web.build(app)
    app.close()
    assert all(loop.is_closed() for loop in made)


def test_gradios_messages_show_names_as_text() -> None:
    @told
    def refuse() -> None:
        raise UserError("There is no model <img src=x>.")

    with pytest.raises(gr.Error) as refused:
        refuse()
    assert refused.value.message == "There is no model &lt;img src=x&gt;."  # Gradio puts it into the page as HTML
