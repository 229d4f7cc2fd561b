"""The Training tab: runs with their plots on one side, the settings of a new one and its data on the other."""

from __future__ import annotations

import html
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from modules.app import App
from modules.errors import Conflict, UserError
from modules.library.places import path_inside, write_text
from modules.training.config import TrainingConfig
from modules.training.dataset import Prepared
from modules.training.formats import list_formats
from modules.training.recipes import list_recipes, read_recipe
from modules.training.rows import SUFFIXES, list_datasets
from modules.training.samples import Sample, readable
from modules.ui.events import PRIVATE, answered, asks, owner_of, told
from modules.ui.form import Form, common_look
from modules.ui.sentences import said
from modules.ui.words import say

_START = """
import(new URL("chats/static/training.js", document.baseURI).href)
  .then((training) => training.start(element, (id) => trigger("copied", {id})));
"""
_COLUMNS = (("Run", "Data", "Raw text"), ("Method", "Steps", "Optimiser", "Watching", "Speed and memory", "Several GPUs"))
_OPEN = ("Run", "Data", "Method", "Steps")
_CHOSEN = ("model", "dataset", "format", "template", "continue_from", "eval_dataset")
_SHOWN_ROWS, _SHOWN_CHARACTERS, _BARS = 8, 4000, 24


def build(app: App, tab: gr.Tab) -> None:
    form = Form(TrainingConfig)
    for name in _CHOSEN:
        look = common_look(name, TrainingConfig.model_fields[name].default, "training.")
        form.controls[name] = gr.Dropdown([look["value"]], allow_custom_value=True, **look)
    with gr.Row():
        with gr.Column(scale=4, min_width=340):
            panel = gr.HTML(
                html_template='<div class="tl tl-plain tl-training"></div>',
                js_on_load=_START,
                apply_default_css=False,
                padding=False,
            )
        with gr.Column(scale=7, min_width=340):
            recipe = gr.Dropdown([], label=say("training.recipe"), info=say("training.recipe.help"))
            with gr.Row(elem_classes="tl-toolbar"):
                start = gr.Button(say("training.start"), variant="primary", scale=0, min_width=130, elem_id="training-start")
                queue = gr.Button(say("training.queue"), scale=0, min_width=160, elem_id="training-queue")
                preview = gr.Button(say("training.preview"), scale=0, min_width=130, elem_id="training-preview")
            about = gr.HTML(elem_classes="tl-summary tl-training-about", padding=False)
            shown = gr.HTML(elem_classes="tl-preview", elem_id="training-data", padding=False)
            with gr.Accordion(say("training.add"), open=False):
                upload = gr.File(label=say("training.upload"), file_types=[*SUFFIXES], type="filepath")
                name = gr.Textbox(label=say("training.paste.name"), placeholder="my-data.jsonl")
                pasted = gr.Textbox(label=say("training.paste"), lines=5)
                keep = gr.Button(say("training.paste.save"), elem_id="training-keep")
            with gr.Row():
                for column in _COLUMNS:
                    with gr.Column(min_width=280):
                        for group in column:
                            with gr.Accordion(say(f"group.{group}"), open=group in _OPEN):
                                form.place(form.groups[group])

    def choices(**values: str) -> dict[Any, Any]:
        """What can be chosen now; `values` are put into the controls."""
        datasets = list_datasets(app.training.places.datasets)
        lists: dict[str, Sequence[str]] = {
            "model": [spec.name for spec in app.models.all() if spec.format == "folder" and not spec.problem],
            "dataset": datasets,
            "eval_dataset": ["", *datasets],
            "format": ["auto", *list_formats(app.training.places.formats)],
            "template": ["auto", "model", "format", *app.templates.names()],
            "continue_from": ["", *(lora.name for lora in app.loras.all() if lora.format == "peft" and not lora.problem)],
        }
        return {form.controls[key]: gr.update(choices=list(lists[key]), **_value(values, key)) for key in _CHOSEN} | {
            recipe: gr.update(choices=list_recipes(app.training.recipes))
        }

    @told
    def opened(model: str | None) -> dict[Any, Any]:
        loaded = app.engine.loaded
        usable = [spec.name for spec in app.models.all() if spec.format == "folder" and not spec.problem]
        first = loaded.name if loaded is not None and loaded.name in usable else next(iter(usable), "")
        return choices(**({} if model else {"model": first}))

    @told
    def recipe_chosen(wanted: str | None, **values: Any) -> dict[Any, Any]:
        if not wanted:
            return {about: ""}
        chosen = read_recipe(app.training.recipes, wanted)
        kept = {key: value for key, value in form.read(values).model_dump().items() if key in ("name", "model", "dataset")}
        text = f"<p>{html.escape(chosen.about)}</p>"
        return {**form.show(TrainingConfig.read({**kept, **chosen.values})), about: text}

    @told
    def previewed(**values: Any) -> str:
        config = form.read(values)
        prepared, tokenizer = app.training.preview(config)
        return preview_html(prepared, tokenizer, config.cutoff)

    @told
    def begun(request: gr.Request, **values: Any) -> None:
        app.access.require_admin(owner_of(request))
        app.training.start(form.read(values))

    @told
    def queued(request: gr.Request, **values: Any) -> None:
        app.access.require_admin(owner_of(request))
        app.training.start(form.read(values), queue=True)

    @told
    def copied(event: gr.EventData) -> dict[Any, Any]:
        return form.show(app.training.copy(event.id))

    @told
    def uploaded(path: str | None, request: gr.Request) -> dict[Any, Any]:
        app.access.require_admin(owner_of(request))
        if not path:
            return {}
        target = _new_dataset(app, Path(path).name)
        shutil.copy(path, target)
        return choices(dataset=target.name)

    @told
    def saved(title: str, text: str, request: gr.Request) -> dict[Any, Any]:
        app.access.require_admin(owner_of(request))
        if not text.strip():
            raise UserError("Paste the rows first.")
        target = _new_dataset(
            app, title if Path(title).suffix.lower() in SUFFIXES else f"{title.strip() or 'pasted'}{_kind(text)}"
        )
        write_text(target, text)
        return choices(dataset=target.name)

    controls: Any = form.controls
    chosen_controls: list[Any] = [recipe, *(form.controls[key] for key in _CHOSEN)]
    tab.select(opened, form.controls["model"], chosen_controls, **PRIVATE)  # type: ignore[arg-type]
    recipe.input(recipe_chosen, None, [about, *form.controls.values()], inputs_kwargs={"wanted": recipe, **controls}, **PRIVATE)
    asks(preview, previewed, None, shown, inputs_kwargs=controls)
    asks(start, begun, inputs_kwargs=controls)
    asks(queue, queued, inputs_kwargs=controls)
    answered(panel.copied(copied, None, list(form.controls.values()), **PRIVATE), "training-copied")  # pyright: ignore[reportAttributeAccessIssue]
    upload.upload(uploaded, upload, chosen_controls, **PRIVATE)
    asks(keep, saved, [name, pasted], chosen_controls)


def _value(values: dict[str, str], key: str) -> dict[str, Any]:
    return {"value": values[key]} if key in values else {}


def _new_dataset(app: App, name: str) -> Path:
    """Where a new data set goes. Raises Conflict where there is one of that name."""
    path = path_inside(app.training.places.datasets, name, what="data set's name")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{name} is none of the files that can be read: {', '.join(SUFFIXES)}.")
    if path.exists():
        raise Conflict(f"There is already a data set called {name}: choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _kind(text: str) -> str:
    """The suffix that pasted text asks for."""
    first = text.lstrip()[:1]
    return ".json" if first == "[" else ".jsonl" if first == "{" else ".txt"


# --- the preview, as HTML of our own making: every text in it is escaped


def preview_html(prepared: Prepared, tokenizer: Any, cutoff: int) -> str:
    """The first rows with learnt tokens marked, how long rows are, and what is wrong with which."""
    template = f" · {html.escape(prepared.template)}" if prepared.template else ""
    rows = "".join(
        _row(sample, tokenizer, rejected=prepared.pairs and at % 2 == 1)
        for at, sample in enumerate(prepared.samples[:_SHOWN_ROWS])
    )
    return (
        f"<p><strong>{html.escape(prepared.format)}</strong>{template} · {html.escape(said(prepared.sentence))}</p>"
        f"{histogram([len(sample.tokens) + sample.cut for sample in prepared.samples], cutoff)}{_problems(prepared)}{rows}"
    )


def _row(sample: Sample, tokenizer: Any, *, rejected: bool) -> str:
    """rejected: what is marked is the answer that is to become less likely."""
    kind = ' class="tl-rejected"' if rejected else ""
    left = _SHOWN_CHARACTERS
    parts = []
    for text, learnt in readable(tokenizer, sample):
        part = html.escape(text[:left])
        parts.append(f"<mark{kind}>{part}</mark>" if learnt else part)
        left -= len(text)
        if left <= 0:
            parts.append("…")
            break
    cut = said(f", {sample.cut} more cut off") if sample.cut else ""
    about = said(f"row {sample.row} · {len(sample.tokens)} tokens{cut}")
    return f'<div class="tl-example"><small>{about}</small><pre>{"".join(parts)}</pre></div>'


def _problems(prepared: Prepared) -> str:
    items = "".join(
        f"<li><b>{problem.row}</b> {html.escape(said(problem.kind))}: {html.escape(said(problem.reason))}</li>"
        for problem in prepared.problems[:50]
    )
    more = f"<li>… {len(prepared.problems) - 50}</li>" if len(prepared.problems) > 50 else ""
    return f'<ul class="tl-problems">{items}{more}</ul>' if items else ""


def histogram(lengths: Sequence[int], cutoff: int) -> str:
    """Bars of how many rows have how many tokens, as SVG; those beyond the cutoff in another colour."""
    top = max(lengths)
    size = max(1, -(-top // _BARS))
    counts = [0] * (top // size + 1)
    for length in lengths:
        counts[length // size] += 1
    high = max(counts)
    bars = "".join(
        f'<rect x="{at * 10 + 1}" y="{40 - 38 * count / high:.1f}" width="8" height="{38 * count / high:.1f}"'
        f"{' class=over' if at * size > cutoff else ''}><title>{at * size}–{at * size + size - 1}: {count}</title></rect>"
        for at, count in enumerate(counts)
        if count
    )
    width = len(counts) * 10
    return (
        f'<svg class="tl-bars" viewBox="0 0 {width} 50" role="img" aria-label="{min(lengths)}–{top}">{bars}'
        f'<text x="0" y="49">0</text><text x="{width}" y="49" text-anchor="end">{top}</text></svg>'
    )
