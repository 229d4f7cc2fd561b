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
from modules.ui.events import PRIVATE, asks, note, owner_of, say_it, told
from modules.ui.form import Form

_COLUMNS = (("Length", "Text", "Form"), ("Temperature", "Filters"), ("Repetition", "Guidance"))
_PLOT = """
import(new URL("chats/static/distribution.js", document.baseURI).href).then((plot) => plot.start(element));
addEventListener("tl-restored", () => trigger("restored"));
"""
IN_TURN = {**PRIVATE, "concurrency_id": "parameters"}
"""For all that changes the settings: what was pressed last is what is shown at the end."""


def build(app: App, tab: gr.Tab) -> None:
    form = Form(SamplingParams)
    page = Form(PageSettings, ["stream"])
    with gr.Row(elem_classes="tl-toolbar"):
        preset = gr.Dropdown(
            [], label=say("preset"), allow_custom_value=True, scale=2, min_width=220, info=say("parameters.preset.help")
        )
        save = gr.Button(say("save"), scale=0, min_width=90, elem_id="preset-save")
        delete = gr.Button(say("delete"), scale=0, min_width=90, elem_id="preset-delete")
        neutral = gr.Button(say("parameters.neutral"), scale=0, min_width=160, elem_id="parameters-neutral")
        default = gr.Button(say("parameters.default"), scale=0, min_width=170, elem_id="parameters-default")
    said = note()
    with gr.Row():
        with gr.Column(min_width=280):
            _heading("parameters.changes")
            summary = gr.HTML(elem_classes="tl-summary", apply_default_css=False)
        with gr.Column(min_width=280, scale=2):
            plot = gr.HTML(
                html_template='<div class="tl tl-plain tl-live-plot"></div>',
                js_on_load=_PLOT,
                apply_default_css=False,
                padding=False,
            )
    with gr.Row():
        for column in _COLUMNS:
            with gr.Column(min_width=280):
                for group in column:
                    _heading(f"group.{group}")
                    form.place(form.groups[group])
                    if group == "Text":
                        page.place(["stream"])

    everything: list[Any] = [preset, summary, *form.controls.values(), *page.controls.values()]

    def workspace_of(request: gr.Request) -> Workspace:
        return Workspace(app, owner_of(request))

    def shown(workspace: Workspace) -> dict[Any, Any]:
        sampling, name = workspace.preferences.sampling
        model = app.engine.loaded
        changes: dict[str, dict[str, Any]] = {}
        for field in form.fields:
            usable = model is None or field in model.capabilities.samplers
            info = say(f"setting.{field}.help" if usable else "parameters.unused")
            changes[field] = {"interactive": usable, "info": info}
        return {
            **form.show(sampling, **changes),
            **page.show(workspace.preferences.page),
            preset: gr.update(choices=workspace.preferences.presets(), value=name or ""),
            summary: differences_table(sampling),
        }

    @told
    def opened(request: gr.Request) -> dict[Any, Any]:
        return shown(workspace_of(request))

    @told
    def chosen(name: str, request: gr.Request) -> dict[Any, Any]:
        workspace = workspace_of(request)
        if name not in workspace.preferences.presets():
            return {said: None}  # a new name, for saving
        before = workspace.preferences.sampling
        workspace.preferences.choose_preset(name)
        return {**shown(workspace), said: workspace.undo.told_settings(before)}

    @told
    def changed(request: gr.Request, **values: Any) -> str:
        """The name of the preset stays: Save puts what is set now into it."""
        preferences = workspace_of(request).preferences
        sampling = form.read(values)
        preferences.set_sampling(sampling, preferences.sampling[1])
        return differences_table(sampling)

    @told
    def page_changed(stream: bool, request: gr.Request) -> None:
        workspace_of(request).preferences.set_page({"stream": stream})

    @told
    def saved(name: str, request: gr.Request) -> dict[Any, Any]:
        workspace, name = workspace_of(request), (name or "").strip()
        change = workspace.preferences.save_preset(name)
        return {**shown(workspace), said: undo.told(change, "overwritten" if change.id else "preset.saved", name=name)}

    @told
    def deleted(name: str, request: gr.Request) -> dict[Any, Any]:
        if not name:
            raise UserError("Choose the preset to delete first.")
        workspace = workspace_of(request)
        change = workspace.preferences.delete_preset(name)
        return {**shown(workspace), said: undo.told(change, "preset.deleted", name=name)}

    @told
    def reset(request: gr.Request) -> dict[Any, Any]:
        workspace = workspace_of(request)
        before = workspace.preferences.sampling
        workspace.preferences.set_sampling(SamplingParams(), None)
        return {**shown(workspace), said: workspace.undo.told_settings(before)}

    @told
    def make_default(request: gr.Request) -> dict[str, Any]:
        workspace = workspace_of(request)
        with workspace.undo.defaults() as change:
            file = workspace.preferences.save_as_default()
        return undo.told(change, "session.defaults.saved", file=file)

    tab.select(opened, None, everything, **IN_TURN)
    plot.restored(opened, None, everything, **IN_TURN)  # pyright: ignore[reportAttributeAccessIssue]
    say_it(preset.input(chosen, preset, [*everything, said], **IN_TURN), said)
    asks(save, saved, preset, [*everything, said], said, **IN_TURN)
    asks(delete, deleted, preset, [*everything, said], said, **IN_TURN)
    asks(neutral, reset, None, [*everything, said], said, **IN_TURN)
    asks(default, make_default, None, said, said, **IN_TURN)
    page.controls["stream"].input(page_changed, page.controls["stream"], None, **IN_TURN)  # type: ignore[attr-defined]
    gr.on(
        form.edited,
        changed,
        None,
        summary,
        inputs_kwargs=form.controls,
        trigger_mode="always_last",
        **IN_TURN,
    )


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
