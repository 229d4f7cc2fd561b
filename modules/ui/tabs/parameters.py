"""The Parameters tab: how the next token is chosen, kept for each user, and what it does to a real distribution."""

from __future__ import annotations

import html
import json
from typing import Any

import gradio as gr

from modules.app import App
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.i18n.catalogs import say
from modules.services import undo
from modules.services.workspace import Workspace
from modules.settings.page import PageSettings
from modules.ui.events import PRIVATE, asks, note, say_it, told, workspace_of
from modules.ui.form import Form

_COLUMNS = (("Length", "Text", "Form"), ("Temperature", "Filters"), ("Repetition", "Guidance"))
_PLOT = """
import(new URL("chats/static/distribution.js", document.baseURI).href).then((plot) => plot.start(element));
addEventListener("tl-restored", () => trigger("restored"));
"""
IN_TURN = {**PRIVATE, "concurrency_id": "parameters"}
"""For all that changes the settings: what was pressed last is what is shown at the end."""


class _Card:
    """The presets, what differs from neutral, the plot and the settings, drawn where the page is being built."""

    def __init__(self) -> None:
        self.form = Form(SamplingParams)
        self.page = Form(PageSettings, ["stream"])
        with gr.Row(elem_classes="tl-toolbar"):
            self.preset = gr.Dropdown(
                [], label=say("preset"), allow_custom_value=True, scale=2, min_width=220, info=say("parameters.preset.help")
            )
            self.save = gr.Button(say("save"), scale=0, min_width=90, elem_id="preset-save")
            self.delete = gr.Button(say("delete"), scale=0, min_width=90, elem_id="preset-delete")
            self.neutral = gr.Button(say("parameters.neutral"), scale=0, min_width=160, elem_id="parameters-neutral")
            self.default = gr.Button(say("parameters.default"), scale=0, min_width=170, elem_id="parameters-default")
        self.said = note()
        self._place_plot()
        self._place_settings()

    def _place_plot(self) -> None:
        with gr.Row():
            with gr.Column(min_width=280):
                _heading("parameters.changes")
                self.summary = gr.HTML(elem_classes="tl-summary", apply_default_css=False)
            with gr.Column(min_width=280, scale=2):
                self.plot = gr.HTML(
                    html_template='<div class="tl tl-plain tl-live-plot"></div>',
                    js_on_load=_PLOT,
                    apply_default_css=False,
                    padding=False,
                )

    def _place_settings(self) -> None:
        with gr.Row():
            for column in _COLUMNS:
                with gr.Column(min_width=280):
                    for group in column:
                        _heading(f"group.{group}")
                        self.form.place(self.form.groups[group])
                        if group == "Text":
                            self.page.place(["stream"])

    @property
    def outputs(self) -> list[Any]:
        """What `shown` changes."""
        return [self.preset, self.summary, *self.form.controls.values(), *self.page.controls.values()]

    def shown(self, workspace: Workspace) -> dict[Any, Any]:
        """Updates that show the user's settings; what the loaded model has no use for cannot be changed."""
        sampling, name = workspace.preferences.sampling
        model = workspace.app.manager.loaded
        changes: dict[str, dict[str, Any]] = {}
        for field in self.form.fields:
            usable = model is None or field in model.capabilities.samplers
            info = say(f"setting.{field}.help" if usable else "parameters.unused")
            changes[field] = {"interactive": usable, "info": info}
        return {
            **self.form.show(sampling, **changes),
            **self.page.show(workspace.preferences.page),
            self.preset: gr.update(choices=workspace.preferences.presets(), value=name or ""),
            self.summary: differences_table(sampling),
        }


def build(app: App, tab: gr.Tab) -> None:
    card = _Card()
    _add_settings(app, tab, card)
    _add_presets(app, card)
    _add_resets(app, card)


def _add_settings(app: App, tab: gr.Tab, card: _Card) -> None:
    @told
    def opened(request: gr.Request) -> dict[Any, Any]:
        return card.shown(workspace_of(app, request))

    @told
    def changed(request: gr.Request, **values: Any) -> str:
        """The name of the preset stays: Save puts what is set now into it."""
        preferences = workspace_of(app, request).preferences
        sampling = card.form.read(values)
        preferences.set_sampling(sampling, preferences.sampling[1])
        return differences_table(sampling)

    @told
    def page_changed(stream: bool, request: gr.Request) -> None:
        workspace_of(app, request).preferences.set_page({"stream": stream})

    tab.select(opened, None, card.outputs, **IN_TURN)
    card.plot.restored(opened, None, card.outputs, **IN_TURN)  # pyright: ignore[reportAttributeAccessIssue]
    stream = card.page.controls["stream"]
    stream.input(page_changed, stream, None, **IN_TURN)  # type: ignore[attr-defined]
    gr.on(
        card.form.edited,
        changed,
        None,
        card.summary,
        inputs_kwargs=card.form.controls,
        trigger_mode="always_last",
        **IN_TURN,
    )


def _add_presets(app: App, card: _Card) -> None:
    @told
    def chosen(name: str, request: gr.Request) -> dict[Any, Any]:
        workspace = workspace_of(app, request)
        if name not in workspace.preferences.presets():
            return {card.said: None}  # a new name, for saving
        before = workspace.preferences.sampling
        workspace.preferences.choose_preset(name)
        return {**card.shown(workspace), card.said: workspace.undo.told_settings(before)}

    @told
    def saved(name: str, request: gr.Request) -> dict[Any, Any]:
        workspace, name = workspace_of(app, request), (name or "").strip()
        change = workspace.preferences.save_preset(name)
        words = "overwritten" if change.id else "preset.saved"
        return {**card.shown(workspace), card.said: undo.told(change, words, name=name)}

    @told
    def deleted(name: str, request: gr.Request) -> dict[Any, Any]:
        if not name:
            raise UserError("Choose the preset to delete first.")
        workspace = workspace_of(app, request)
        change = workspace.preferences.delete_preset(name)
        return {**card.shown(workspace), card.said: undo.told(change, "preset.deleted", name=name)}

    outputs = [*card.outputs, card.said]
    say_it(card.preset.input(chosen, card.preset, outputs, **IN_TURN), card.said)
    asks(card.save, saved, card.preset, outputs, card.said, **IN_TURN)
    asks(card.delete, deleted, card.preset, outputs, card.said, **IN_TURN)


def _add_resets(app: App, card: _Card) -> None:
    @told
    def reset(request: gr.Request) -> dict[Any, Any]:
        workspace = workspace_of(app, request)
        before = workspace.preferences.sampling
        workspace.preferences.set_sampling(SamplingParams(), None)
        return {**card.shown(workspace), card.said: workspace.undo.told_settings(before)}

    @told
    def make_default(request: gr.Request) -> dict[str, Any]:
        workspace = workspace_of(app, request)
        with workspace.undo.defaults() as change:
            file = workspace.preferences.save_as_default()
        return undo.told(change, "session.defaults.saved", file=file)

    asks(card.neutral, reset, None, [*card.outputs, card.said], card.said, **IN_TURN)
    asks(card.default, make_default, None, card.said, card.said, **IN_TURN)


def _heading(key: str) -> None:
    gr.HTML(html_template="<h2>${value}</h2>", value=say(key), elem_classes="tl-group", apply_default_css=False)  # type: ignore[arg-type]


def differences_table(sampling: SamplingParams) -> str:
    """What differs from neutral, as a small table: the setting, its neutral value, the value now."""
    neutral = SamplingParams().model_dump(mode="json")
    values = sampling.model_dump(mode="json", exclude_defaults=True)
    rows = "".join(
        f"<tr><th scope='row'><code>{name}</code></th><td>{_value(neutral[name])}</td><td>{_value(value)}</td></tr>"
        for name, value in values.items()
    )
    return f"<table class='tl-changes'><tbody>{rows}</tbody></table>"


def _value(value: object) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return html.escape(text if len(text) <= 80 else text[:79] + "…")
