"""The Parameters tab: how the next token is chosen, kept for each user."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from modules.app import App
from modules.errors import UserError
from modules.generation.sampling import SamplingParams
from modules.ui import preferences
from modules.ui.events import PRIVATE, owner_of, told
from modules.ui.form import Form
from modules.ui.words import say

_COLUMNS = (("Length", "Temperature", "Text"), ("Filters",), ("Repetition", "Guidance", "Form"))


def build(app: App, tab: gr.Tab) -> None:
    form = Form(SamplingParams)
    with gr.Row(elem_classes="tl-toolbar"):
        preset = gr.Dropdown([], label=say("preset"), allow_custom_value=True, scale=2, info=say("parameters.preset.help"))
        save = gr.Button(say("save"), scale=0, min_width=90)
        delete = gr.Button(say("delete"), scale=0, min_width=90)
        neutral = gr.Button(say("parameters.neutral"), scale=0, min_width=170)
    summary = gr.HTML(elem_classes="tl-summary", apply_default_css=False)
    with gr.Row():
        for column in _COLUMNS:
            with gr.Column(min_width=280):
                for group in column:
                    gr.HTML(
                        html_template="<h2>${value}</h2>",
                        value=say(f"group.{group}"),
                        elem_classes="tl-group",
                        apply_default_css=False,
                    )  # type: ignore[arg-type]
                    form.place(form.groups[group])

    everything: list[Any] = [preset, summary, *form.controls.values()]

    def shown(owner: str) -> dict[Any, Any]:
        sampling, name = preferences.sampling_of(app, owner)
        model = app.engine.loaded
        changes: dict[str, dict[str, Any]] = {}
        for field in form.fields:
            usable = model is None or field in model.capabilities.samplers
            info = say(f"setting.{field}.help" if usable else "parameters.unused")
            changes[field] = {"interactive": usable, "info": info}
        return {
            **form.show(sampling, **changes),
            preset: gr.update(choices=app.presets.of(owner).names(), value=name or ""),
            summary: differences_table(sampling),
        }

    @told
    def opened(request: gr.Request) -> dict[Any, Any]:
        return shown(owner_of(request))

    @told
    def chosen(name: str, request: gr.Request) -> dict[Any, Any]:
        if name not in app.presets.of(owner_of(request)).names():
            return {preset: gr.update()}  # a new name, for saving
        preferences.choose_preset(app, owner_of(request), name)
        return shown(owner_of(request))

    @told
    def changed(request: gr.Request, **values: Any) -> dict[Any, Any]:
        owner = owner_of(request)
        _, name = preferences.sampling_of(app, owner)
        sampling = form.read(values)
        preferences.set_sampling(app, owner, sampling, name)
        return {summary: differences_table(sampling), preset: preferences.sampling_of(app, owner)[1] or ""}

    @told
    def saved(name: str, request: gr.Request) -> dict[Any, Any]:
        sampling, _ = preferences.sampling_of(app, owner_of(request))
        app.presets.of(owner_of(request)).save(name, sampling)
        preferences.set_sampling(app, owner_of(request), sampling, name.strip())
        return shown(owner_of(request))

    @told
    def deleted(name: str, request: gr.Request) -> dict[Any, Any]:
        if not name:
            raise UserError("Choose the preset to delete first.")
        app.presets.of(owner_of(request)).delete(name)
        return shown(owner_of(request))

    @told
    def reset(request: gr.Request) -> dict[Any, Any]:
        preferences.set_sampling(app, owner_of(request), SamplingParams(), None)
        return shown(owner_of(request))

    tab.select(opened, None, everything, **PRIVATE)
    preset.input(chosen, preset, everything, **PRIVATE)
    save.click(saved, preset, everything, **PRIVATE)
    delete.click(deleted, preset, everything, **PRIVATE)
    neutral.click(reset, None, everything, **PRIVATE)
    gr.on(
        form.edited,
        changed,
        None,
        [preset, summary],
        inputs_kwargs=form.controls,
        trigger_mode="always_last",
        **PRIVATE,
    )


def differences_table(sampling: SamplingParams) -> str:
    """What differs from neutral, as a line of small labels."""
    values = sampling.model_dump(mode="json", exclude_defaults=True)
    labels = "".join(f"<li><code>{html.escape(name)}</code> {html.escape(str(value))}</li>" for name, value in values.items())
    return f"<ul>{labels}</ul>"
