"""The Models tab: what is on disk, how the chosen model is loaded, and downloads."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from modules.app import App
from modules.errors import NotFound, UserError
from modules.i18n.catalogs import say
from modules.i18n.sentences import said
from modules.library import memory
from modules.library.hardware import this_machine
from modules.library.model_spec import ModelSpec
from modules.loaders import choose
from modules.loaders.options import LoaderName, LoadOptions
from modules.services import models as model_actions
from modules.services import undo
from modules.services.models import wish_of
from modules.settings.declare import hints_of
from modules.ui.events import PRIVATE, asks, note, owner_of, told
from modules.ui.form import Form, common_look

_LIST = """
import(new URL("chats/static/models.js", document.baseURI).href)
  .then((models) => models.start(element, (name) => trigger("pick", {name})));
"""
_MORE = """
import(new URL("chats/static/beside_models.js", document.baseURI).href)
  .then((beside) => beside.start(element));
"""
_FOLDED = ("Device", "Engine", "Longer context")
"""Groups that few people need: the page is short without them."""


_BITS = {"auto": {}, "8-bit": {"load_in_8bit": True}, "4-bit": {"load_in_4bit": True}}
"""One choice on the page; on the command line these are two flags, as they were in 2023."""
_SWITCHES = ("load_in_8bit", "load_in_4bit")


def build(app: App, tab: gr.Tab) -> None:
    form = Form(LoadOptions, [name for name in LoadOptions.model_fields if name not in _SWITCHES], values=app.loading)
    bits = gr.Dropdown(list(_BITS), filterable=False, **common_look("bits", _bits_of(app.loading)))
    chosen = gr.State("")
    with gr.Row(elem_classes="tl-models-page"):
        panel = _panel("tl-models", _LIST)
        with gr.Column(elem_classes="tl-chosen", min_width=320):
            title = gr.HTML(elem_classes="tl-group", apply_default_css=False)
            estimate = gr.HTML(elem_classes="tl-estimate", apply_default_css=False)
            with gr.Row():
                load = gr.Button(say("model.load"), variant="primary", min_width=100, elem_id="model-load")
                save = gr.Button(say("model.save"), min_width=100, elem_id="model-save")
            said = note()
            groups: dict[str, gr.Accordion] = {}
            for group, names in form.groups.items():
                with gr.Accordion(
                    say(f"group.{group}"), open=group not in _FOLDED, visible=group in ("Loader", "Device")
                ) as box:
                    if group == "Quantise while loading":
                        bits.render()
                    form.place(names)
                groups[group] = box
        _panel("tl-beside-models", _MORE)

    def fitted(spec: ModelSpec, options: LoadOptions) -> dict[Any, Any]:
        """Only what the loader of these options uses is shown, and whether the model will fit."""
        name = choose.choose(spec, options)
        used = {field: _used(field, name) for field in form.fields}
        updates: dict[Any, Any] = {form.controls[field]: gr.update(visible=visible) for field, visible in used.items()}
        for group, box in groups.items():
            updates[box] = gr.update(visible=any(used[field] for field in form.groups[group]))
        updates[groups["Quantise while loading"]] = gr.update(visible=name in ("transformers", "bitsandbytes"))
        updates[estimate] = _estimate(app, spec, options, name)
        return updates

    @told
    def picked(event: gr.EventData) -> dict[Any, Any]:
        spec = app.models.find(event.name)
        options = app.saved_options.for_model(spec.name, app.loading)
        updates = fitted(spec, options)
        for control, update in form.show(options).items():
            updates[control] = {**updates[control], **update}
        return {**updates, bits: gr.update(value=_bits_of(options)), chosen: spec.name, title: _heading(spec)}

    @told
    def changed(**values: Any) -> dict[Any, Any]:
        name = values.pop("chosen")
        if not name:
            return {}
        return fitted(app.models.find(name), _options(form, values))

    @told
    def start(request: gr.Request, **values: Any) -> None:
        spec, options = _read(app, form, values)
        model_actions.load_model(app, owner_of(request), spec.name, options)

    @told
    def keep(request: gr.Request, **values: Any) -> dict[str, Any]:
        app.access.require_admin(owner_of(request))
        spec, options = _read(app, form, values)
        change = model_actions.keep_loading(app, owner_of(request), spec.name, options)
        return undo.told(change, "model.saved", name=spec.name)

    everything: list[Any] = [chosen, title, estimate, *groups.values(), bits, *form.controls.values()]
    inputs = {"chosen": chosen, "bits": bits, **form.controls}
    # Who clicks again before the answer has come gets what was clicked last; "always_last" would forget its name.
    panel.pick(picked, None, everything, trigger_mode="multiple", **PRIVATE)
    gr.on(
        [*form.edited, bits.input],
        changed,
        None,
        [estimate, *groups.values(), *form.controls.values()],
        inputs_kwargs=inputs,  # type: ignore[arg-type]
        trigger_mode="always_last",
        **PRIVATE,
    )
    asks(load, start, inputs_kwargs=inputs)
    asks(save, keep, None, said, said, inputs_kwargs=inputs)


def _panel(name: str, script: str) -> gr.HTML:
    return gr.HTML(
        html_template=f'<div class="tl tl-plain {name}"></div>',
        js_on_load=script,
        elem_classes=f"{name}-place",
        apply_default_css=False,
        padding=False,
    )


def _used(field: str, loader: LoaderName) -> bool:
    users = hints_of(LoadOptions.model_fields[field]).loaders
    return not users or loader in users or (field in _SWITCHES and loader == "transformers")


def _read(app: App, form: Form[LoadOptions], values: dict[str, Any]) -> tuple[ModelSpec, LoadOptions]:
    """The chosen model, and the options that its loader uses."""
    name = values.pop("chosen")
    if not name:
        raise UserError("Choose a model in the list first.")
    spec = app.models.find(name)
    options = _options(form, values)
    loader = choose.choose(spec, options)
    return spec, LoadOptions.read({field: value for field, value in options.given().items() if _used(field, loader)})


def _options(form: Form[LoadOptions], values: dict[str, Any]) -> LoadOptions:
    """What the controls show: the choice of bits as the two flags that it is."""
    bits = dict.fromkeys(_SWITCHES, False) | _BITS[values["bits"]]
    return form.read(values).changed(bits)


def _bits_of(options: LoadOptions) -> str:
    return "8-bit" if options.load_in_8bit else "4-bit" if options.load_in_4bit else "auto"


def _heading(spec: ModelSpec) -> str:
    return f"<h2>{html.escape(spec.name)}</h2>"


def _estimate(app: App, spec: ModelSpec, options: LoadOptions, loader: LoaderName) -> str:
    try:
        reason = spec.problem or choose.loader(loader).why_not(spec, options)
    except ImportError as error:
        reason = f"The {loader} loader cannot be used: {error}"
    if reason:
        return f'<p class="tl-verdict" data-verdict="wrong">{html.escape(said(reason))}</p>'
    plan = memory.plan(spec, wish_of(options), this_machine(), on_gpu=not options.cpu, freed=_freed(app))
    odd = "".join(f'<p class="tl-verdict" data-verdict="tight">{html.escape(said(warning))}</p>' for warning in spec.warnings)
    return f'{odd}<p class="tl-verdict" data-verdict="{plan.verdict}">{html.escape(said(plan.sentence))}</p>'


def _freed(app: App) -> int:
    """About how many bytes the loaded model gives back when another one takes its place."""
    model, last = app.engine.loaded, app.last_load
    if model is None or last is None or last[0] != model.name:
        return 0
    try:
        spec = app.models.find(model.name)
    except NotFound:  # it was removed meanwhile
        return 0
    return memory.memory_need(spec, wish_of(last[1])).total
