"""The Models tab: what is on disk, how the chosen model is loaded, and downloads."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from modules.app import App
from modules.errors import UserError
from modules.i18n.catalogs import say
from modules.i18n.sentences import said
from modules.services import undo
from modules.services.models import Fit, LoadOptions
from modules.services.workspace import Workspace
from modules.ui.events import PRIVATE, asks, note, told, workspace_of
from modules.ui.form import Form, common_look

_LIST = """
import(new URL("chats/static/models.js", document.baseURI).href)
  .then((models) => models.start(element, (name) => trigger("pick", {name})));
"""
_MORE = """
import(new URL("chats/static/model_sidebar.js", document.baseURI).href)
  .then((beside) => beside.start(element));
"""
_FOLDED = ("Device", "Engine", "Longer context")
"""Groups that few people need: the page is short without them."""
_QUANTIZE = "Quantise while loading"
_BITS = {"auto": {}, "8-bit": {"load_in_8bit": True}, "4-bit": {"load_in_4bit": True}}
"""One choice on the page; on the command line these are two flags, as they were in 2023."""
_SWITCHES = ("load_in_8bit", "load_in_4bit")


class _Card:
    """The controls of the chosen model, drawn where the page is being built. groups: folded parts of the form, by the settings' group."""

    def __init__(self, defaults: LoadOptions) -> None:
        self.form = Form(LoadOptions, [name for name in LoadOptions.model_fields if name not in _SWITCHES], values=defaults)
        self.bits = gr.Dropdown(list(_BITS), filterable=False, **common_look("bits", _bits_of(defaults)))
        self.chosen = gr.State("")
        self.groups: dict[str, gr.Accordion] = {}
        with gr.Column(elem_classes="tl-chosen", min_width=320):
            self.title = gr.HTML(elem_classes="tl-group", apply_default_css=False)
            self.estimate = gr.HTML(elem_classes="tl-estimate", apply_default_css=False)
            with gr.Row():
                self.load = gr.Button(say("model.load"), variant="primary", min_width=100, elem_id="model-load")
                self.save = gr.Button(say("model.save"), min_width=100, elem_id="model-save")
            self.said = note()
            for group, names in self.form.groups.items():
                shown = group in ("Loader", "Device")
                with gr.Accordion(say(f"group.{group}"), open=group not in _FOLDED, visible=shown) as self.groups[group]:
                    if group == _QUANTIZE:
                        self.bits.render()
                    self.form.place(names)

    @property
    def inputs(self) -> dict[str, Any]:
        """What `read` takes, and the name of the model."""
        return {"chosen": self.chosen, "bits": self.bits, **self.form.controls}

    @property
    def outputs(self) -> list[Any]:
        """What `fitted` changes."""
        return [self.estimate, *self.groups.values(), *self.form.controls.values()]

    def fitted(self, fit: Fit) -> dict[Any, Any]:
        """Updates that show only what the loader reads, and whether the model will fit."""
        updates: dict[Any, Any] = {control: gr.update(visible=name in fit.used) for name, control in self.form.controls.items()}
        for group, box in self.groups.items():
            updates[box] = gr.update(visible=any(name in fit.used for name in self.form.groups[group]))
        updates[self.groups[_QUANTIZE]] = gr.update(visible=fit.quantizes)
        updates[self.estimate] = _estimate(fit)
        return updates

    def shown(self, options: LoadOptions, fit: Fit) -> dict[Any, Any]:
        """Updates that make the card show these options."""
        updates = self.fitted(fit)
        for control, update in self.form.show(options).items():
            updates[control] = {**updates[control], **update}
        return {**updates, self.bits: gr.update(value=_bits_of(options))}

    def read(self, values: dict[str, Any]) -> LoadOptions:
        """What the controls show: the choice of bits as the two flags that it is. Raises UserError."""
        bits = dict.fromkeys(_SWITCHES, False) | _BITS[values["bits"]]
        return self.form.read(values).changed(bits)


def build(app: App, tab: gr.Tab) -> None:
    with gr.Row(elem_classes="tl-models-page"):
        panel = _panel("tl-models", _LIST)
        card = _Card(app.loading)
        _panel("tl-beside-models", _MORE)
    _add_choosing(app, panel, card)
    _add_buttons(app, card)


def _add_choosing(app: App, panel: gr.HTML, card: _Card) -> None:
    @told
    def picked(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        models, name = workspace_of(app, request).models, event.name
        options = models.saved_options(name)
        shown = card.shown(options, models.fit(name, options))
        return {**shown, card.chosen: name, card.title: f"<h2>{html.escape(name)}</h2>"}

    @told
    def changed(request: gr.Request, **values: Any) -> dict[Any, Any]:
        name = values.pop("chosen")
        if not name:
            return {}
        return card.fitted(workspace_of(app, request).models.fit(name, card.read(values)))

    # Who clicks again before the answer has come gets what was clicked last; "always_last" would forget its name.
    everything = [card.chosen, card.title, card.bits, *card.outputs]
    panel.pick(picked, None, everything, trigger_mode="multiple", **PRIVATE)  # pyright: ignore[reportAttributeAccessIssue]
    gr.on(
        [*card.form.edited, card.bits.input],
        changed,
        None,
        card.outputs,
        inputs_kwargs=card.inputs,  # type: ignore[arg-type]
        trigger_mode="always_last",
        **PRIVATE,
    )


def _add_buttons(app: App, card: _Card) -> None:
    def asked(request: gr.Request, values: dict[str, Any]) -> tuple[Workspace, str, LoadOptions]:
        """(Who asks, the chosen model, the options that its loader reads). Raises UserError."""
        name = values.pop("chosen")
        if not name:
            raise UserError("Choose a model in the list first.")
        workspace = workspace_of(app, request)
        return workspace, name, workspace.models.effective(name, card.read(values))

    @told
    def start(request: gr.Request, **values: Any) -> None:
        workspace, name, options = asked(request, values)
        workspace.models.begin_load(name, options)

    @told
    def keep(request: gr.Request, **values: Any) -> dict[str, Any]:
        workspace, name, options = asked(request, values)
        return undo.told(workspace.models.save_options(name, options), "model.saved", name=name)

    asks(card.load, start, inputs_kwargs=card.inputs)
    asks(card.save, keep, None, card.said, card.said, inputs_kwargs=card.inputs)


def _panel(name: str, script: str) -> gr.HTML:
    return gr.HTML(
        html_template=f'<div class="tl tl-plain {name}"></div>',
        js_on_load=script,
        elem_classes=f"{name}-place",
        apply_default_css=False,
        padding=False,
    )


def _bits_of(options: LoadOptions) -> str:
    return "8-bit" if options.load_in_8bit else "4-bit" if options.load_in_4bit else "auto"


def _estimate(fit: Fit) -> str:
    odd = "".join(f'<p class="tl-verdict" data-verdict="tight">{html.escape(said(warning))}</p>' for warning in fit.warnings)
    return f'{odd}<p class="tl-verdict" data-verdict="{fit.verdict}">{html.escape(said(fit.sentence))}</p>'
