"""The Training tab: runs with their plots on one side, the settings of a new one and its data on the other."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from modules.app import App
from modules.errors import UserError
from modules.i18n.catalogs import say
from modules.i18n.sentences import said
from modules.services.datasets import SUFFIXES, DatasetView
from modules.services.training import FormChoices, TrainingConfig
from modules.services.workspace import Workspace
from modules.ui.data_view import facts_of, figures_html, first_html, kept_html, rows_html, sentence_html
from modules.ui.events import PRIVATE, answered, asks, told, workspace_of
from modules.ui.form import Form, common_look

_START = """
import(new URL("chats/static/training.js", document.baseURI).href)
  .then((training) => training.start(element, (id) => trigger("copied", {id})));
"""
_COLUMNS = (("Run", "Data", "Raw text"), ("Method", "Steps", "Optimiser", "Watching", "Speed and memory", "Several GPUs"))
_OPEN = ("Run", "Data", "Method", "Steps")
_CHOSEN = ("model", "dataset", "format", "template", "continue_from", "eval_dataset")
_KEPT_BY_RECIPES = ("name", "model", "dataset")
_TO_THE_DATA = "() => { document.getElementById('training-data')?.scrollIntoView({block: 'nearest', behavior: 'smooth'}); }"
_WHEN_PASTED = "(text) => ({__type__: 'update', interactive: Boolean(text.trim())})"


def build(app: App, tab: gr.Tab) -> None:
    with gr.Row():
        with gr.Column(scale=4, min_width=340):
            panel = gr.HTML(
                html_template='<div class="tl tl-plain tl-training"></div>',
                js_on_load=_START,
                apply_default_css=False,
                padding=False,
            )
        with gr.Column(scale=7, min_width=340):
            run = _RunCard()
            data = _DataCard()
            new_data = _NewDataCard(data)
            run.place_settings()
    _add_choosing(app, tab, run)
    _add_starting(app, panel, run)
    _add_looking(app, run, data)
    _add_new_data(app, run, data, new_data)


# --- the cards


class _RunCard:
    """The settings of a new run, its recipe and its buttons, drawn where the page is being built."""

    def __init__(self) -> None:
        self.form = Form(TrainingConfig)
        for name in _CHOSEN:
            look = common_look(name, TrainingConfig.model_fields[name].default, "training.")
            self.form.controls[name] = gr.Dropdown([look["value"]], allow_custom_value=True, **look)
        self.recipe = gr.Dropdown([], label=say("training.recipe"), info=say("training.recipe.help"))
        with gr.Row(elem_classes="tl-toolbar"):
            self.start = gr.Button(say("training.start"), variant="primary", scale=0, min_width=130, elem_id="training-start")
            self.queue = gr.Button(say("training.queue"), scale=0, min_width=160, elem_id="training-queue")
            self.preview = gr.Button(say("training.preview"), scale=0, min_width=130, elem_id="training-preview")
        self.about = gr.HTML(elem_classes="tl-summary tl-training-about", padding=False)

    def place_settings(self) -> None:
        """Draw the settings below what else is drawn."""
        with gr.Row():
            for column in _COLUMNS:
                with gr.Column(min_width=280):
                    for group in column:
                        with gr.Accordion(say(f"group.{group}"), open=group in _OPEN):
                            self.form.place(self.form.groups[group])

    @property
    def controls(self) -> Any:
        return self.form.controls

    @property
    def chosen(self) -> list[Any]:
        """What `choices` changes."""
        return [self.recipe, *(self.form.controls[name] for name in _CHOSEN)]

    def choices(self, there: FormChoices, **values: str) -> dict[Any, Any]:
        """Updates that offer what can be chosen now; `values` are put into the controls."""
        updates: dict[Any, Any] = {self.recipe: gr.update(choices=list(there.recipes))}
        for name in _CHOSEN:
            value: dict[str, Any] = {"value": values[name]} if name in values else {}
            updates[self.form.controls[name]] = gr.update(choices=list(there.settings[name]), **value)
        return updates


@dataclass(eq=False)
class _WantedCount:
    """A data set that a page wants counted; file: it was kept under this name just now. given_up: something else is looked at since."""

    config: TrainingConfig
    file: str
    given_up: bool = False


class _DataCard:
    """What a data set looks like, and what can be done about it, drawn where the page is being built. foreign: a file to convert."""

    def __init__(self) -> None:
        with gr.Column(elem_id="training-data", elem_classes="tl-preview"):
            self.counts = gr.HTML(padding=False)
            self.convert = gr.Button(say("training.convert"), scale=0, visible=False, elem_id="training-convert")
            self.lists = gr.Radio([], label=say("training.lists"), visible=False, elem_id="training-lists")
            self.rows = gr.HTML(padding=False)
        self.wanted_count, self.foreign = gr.State(None), gr.State("")

    @property
    def outputs(self) -> list[Any]:
        """What `shown` changes."""
        return [self.counts, self.rows, self.convert, self.lists, self.wanted_count, self.foreign]

    def sentence(self, text: str) -> dict[Any, Any]:
        """Updates that show a sentence and nothing else."""
        return {
            self.counts: sentence_html(text),
            self.rows: "",
            self.convert: gr.update(visible=False),
            self.lists: gr.update(visible=False),
            self.wanted_count: None,
        }

    def shown(self, view: DatasetView, config: TrainingConfig, file: str = "") -> dict[Any, Any]:
        """Updates that show a data set. file: it was kept under this name just now."""
        convert = {self.convert: gr.update(visible=bool(view.foreign)), self.foreign: view.foreign}
        if view.first is None:
            lists = gr.update(choices=list(view.lists), value=None, visible=bool(view.lists))
            return {**self.sentence(view.problem), **convert, self.lists: lists}
        return {
            self.counts: first_html(view.first, config.cutoff),
            self.rows: rows_html(view.first),
            **convert,
            self.lists: gr.update(visible=False),
            self.wanted_count: None if view.first.complete else _WantedCount(config, file),
        }


class _NewDataCard:
    """Where data sets are uploaded and pasted, drawn where the page is being built. kept: what became of the last one."""

    def __init__(self, data: _DataCard) -> None:
        self._data = data
        with gr.Accordion(say("training.add"), open=False):
            self.upload = gr.File(label=say("training.upload"), file_types=[*SUFFIXES], type="filepath")
            self.kept = gr.HTML(elem_id="training-kept", padding=False)
            self.name = gr.Textbox(label=say("training.paste.name"), placeholder="my-data.jsonl")
            self.pasted = gr.Textbox(label=say("training.paste"), lines=5, elem_id="training-pasted")
            self.keep = gr.Button(say("training.paste.save"), interactive=False, elem_id="training-keep")

    def added(self, workspace: Workspace, run: _RunCard, name: str, values: dict[str, Any]) -> dict[Any, Any]:
        """Updates that show a data set that was just kept; it stays, whatever may be wrong with its rows."""
        updates = {**run.choices(workspace.training.choices(), dataset=name), self.kept: kept_html(name)}
        try:
            config = run.form.read({**values, "dataset": name})
            updates[self.kept] = kept_html(name, *_facts_without_model(workspace, config))
            view = workspace.datasets.look(config)
        except UserError as error:
            return {**updates, **self._data.sentence(error.message)}
        if view.figures:
            updates[self.kept] = kept_html(name, *facts_of(view.figures))
        return {**updates, **self._data.shown(view, config, name)}


def _facts_without_model(workspace: Workspace, config: TrainingConfig) -> list[str]:
    """Format and number of rows, as far as they are known at once."""
    try:
        name, rows = workspace.datasets.summary(config)
    except UserError:
        return []
    return [name] if rows is None else [name, said(f"{rows} rows")]


# --- what the cards do


def _add_choosing(app: App, tab: gr.Tab, run: _RunCard) -> None:
    @told
    def opened(model: str | None, request: gr.Request) -> dict[Any, Any]:
        there = workspace_of(app, request).training.choices()
        return run.choices(there, **({} if model else {"model": there.model}))

    @told
    def recipe_chosen(wanted: str | None, request: gr.Request, **values: Any) -> dict[Any, Any]:
        if not wanted:
            return {run.about: ""}
        recipe = workspace_of(app, request).training.recipe(wanted)
        kept = {name: value for name, value in run.form.read(values).model_dump().items() if name in _KEPT_BY_RECIPES}
        text = f"<p>{html.escape(recipe.about)}</p>"
        return {**run.form.show(TrainingConfig.read({**kept, **recipe.values})), run.about: text}

    tab.select(opened, run.controls["model"], run.chosen, **PRIVATE)
    outputs = [run.about, *run.controls.values()]
    run.recipe.input(recipe_chosen, None, outputs, inputs_kwargs={"wanted": run.recipe, **run.controls}, **PRIVATE)


def _add_starting(app: App, panel: gr.HTML, run: _RunCard) -> None:
    @told
    def begun(request: gr.Request, **values: Any) -> None:
        _admin(app, request).training.start(run.form.read(values))

    @told
    def queued(request: gr.Request, **values: Any) -> None:
        _admin(app, request).training.start(run.form.read(values), queue=True)

    @told
    def copied(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        return run.form.show(workspace_of(app, request).training.copy(event.id))

    asks(run.start, begun, inputs_kwargs=run.controls)
    asks(run.queue, queued, inputs_kwargs=run.controls)
    done = panel.copied(copied, None, list(run.controls.values()), **PRIVATE)  # pyright: ignore[reportAttributeAccessIssue]
    answered(done, "training-copied")


def _add_looking(app: App, run: _RunCard, data: _DataCard) -> None:
    def looked(request: gr.Request, values: dict[str, Any]) -> dict[Any, Any]:
        """Raises UserError where nothing can be shown."""
        config = run.form.read(values)
        return data.shown(workspace_of(app, request).datasets.look(config), config)

    @told
    def previewed(before: _WantedCount | None, request: gr.Request, **values: Any) -> dict[Any, Any]:
        _give_up(before)
        return looked(request, values)

    @told
    def converted(before: _WantedCount | None, place: str, request: gr.Request, **values: Any) -> dict[Any, Any]:
        workspace = _admin(app, request)
        _give_up(before)
        workspace.datasets.convert(place)
        return looked(request, values)

    @told
    def list_chosen(before: _WantedCount | None, wanted: str, request: gr.Request, **values: Any) -> dict[Any, Any]:
        _give_up(before)
        return {run.controls["dataset"]: wanted, **looked(request, {**values, "dataset": wanted})}

    looking = {"before": data.wanted_count, **run.controls}
    asks(run.preview, previewed, None, data.outputs, inputs_kwargs=looking)
    asks(data.convert, converted, None, data.outputs, inputs_kwargs={"place": data.foreign, **looking})
    outputs = [run.controls["dataset"], *data.outputs]
    data.lists.input(list_chosen, None, outputs, inputs_kwargs={"wanted": data.lists, **looking}, **PRIVATE)


def _add_new_data(app: App, run: _RunCard, data: _DataCard, new: _NewDataCard) -> None:
    @told
    def uploaded(before: _WantedCount | None, path: str | None, request: gr.Request, **values: Any) -> dict[Any, Any]:
        workspace = _admin(app, request)
        _give_up(before)
        return new.added(workspace, run, workspace.datasets.add_file(Path(path)), values) if path else {}

    @told
    def saved(before: _WantedCount | None, title: str, text: str, request: gr.Request, **values: Any) -> dict[Any, Any]:
        workspace = _admin(app, request)
        _give_up(before)
        shown = new.added(workspace, run, workspace.datasets.add_text(title, text), values)
        return {**shown, new.name: "", new.pasted: "", new.keep: gr.update(interactive=False)}

    @told
    def counted(wanted: _WantedCount | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Waits for the figures of the whole data set, as long as nothing else is looked at."""
        shows: dict[Any, Any] = {data.counts: gr.skip()}
        if wanted is not None:
            try:
                with workspace_of(app, request).datasets.counting(wanted.config) as counting:
                    while (known := counting.wait(0.3)) is None and not wanted.given_up:
                        yield shows
                if known is not None:
                    shows = {data.counts: figures_html(known, wanted.config.cutoff)}
                    if wanted.file:
                        shows[new.kept] = kept_html(wanted.file, *facts_of(known))
            except UserError as error:
                shows = {data.counts: sentence_html(error.message)}
        yield {data.counts: gr.skip()} if wanted is not None and wanted.given_up else shows

    looking = {"before": data.wanted_count, **run.controls}
    outputs = [*run.chosen, *data.outputs, new.kept]
    sent = new.upload.upload(uploaded, None, outputs, inputs_kwargs={"path": new.upload, **looking}, **PRIVATE)
    sent.then(None, None, None, js=_TO_THE_DATA, **PRIVATE)  # it may be far above, with the button that mends the file
    new.pasted.change(None, new.pasted, new.keep, js=_WHEN_PASTED, **PRIVATE)
    pasted = {"title": new.name, "text": new.pasted, **looking}
    asks(new.keep, saved, None, [*outputs, new.name, new.pasted, new.keep], inputs_kwargs=pasted)
    data.wanted_count.change(counted, data.wanted_count, [data.counts, new.kept], concurrency_limit=None, **PRIVATE)


def _give_up(before: _WantedCount | None) -> None:
    if before is not None:
        before.given_up = True


def _admin(app: App, request: gr.Request) -> Workspace:
    """What whoever did this can do. Raises Forbidden before anything else is looked at."""
    workspace = workspace_of(app, request)
    workspace.require_admin()
    return workspace
