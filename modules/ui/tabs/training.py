"""The Training tab: runs with their plots on one side, the settings of a new one and its data on the other."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from modules.app import App
from modules.errors import Conflict, UserError
from modules.i18n.catalogs import say
from modules.i18n.sentences import said
from modules.library.paths import path_inside, write_text
from modules.training.config import TrainingConfig
from modules.training.dataset import choose_format
from modules.training.encodings import NotUtf8
from modules.training.encodings import convert as convert_file
from modules.training.formats import list_formats
from modules.training.json_rows import SeveralLists
from modules.training.preview import FIRST_ROWS, figures
from modules.training.recipes import list_recipes, read_recipe
from modules.training.rows import SUFFIXES, find_dataset, list_datasets, name_below, read_rows, to_convert
from modules.ui.data_view import facts_of, figures_html, first_html, kept_html, rows_html, sentence_html
from modules.ui.events import PRIVATE, answered, asks, owner_of, told
from modules.ui.form import Form, common_look

_START = """
import(new URL("chats/static/training.js", document.baseURI).href)
  .then((training) => training.start(element, (id) => trigger("copied", {id})));
"""
_COLUMNS = (("Run", "Data", "Raw text"), ("Method", "Steps", "Optimiser", "Watching", "Speed and memory", "Several GPUs"))
_OPEN = ("Run", "Data", "Method", "Steps")
_CHOSEN = ("model", "dataset", "format", "template", "continue_from", "eval_dataset")
_TO_THE_DATA = "() => { document.getElementById('training-data')?.scrollIntoView({block: 'nearest', behavior: 'smooth'}); }"
_WHEN_PASTED = "(text) => ({__type__: 'update', interactive: Boolean(text.trim())})"


@dataclass(eq=False)
class _WantedCount:
    """A data set that a page wants counted; file: it was kept under this name just now. given_up: something else is looked at since."""

    config: TrainingConfig
    file: str
    given_up: bool = False


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
            with gr.Column(elem_id="training-data", elem_classes="tl-preview"):
                counts = gr.HTML(padding=False)
                convert = gr.Button(say("training.convert"), scale=0, visible=False, elem_id="training-convert")
                lists = gr.Radio([], label=say("training.lists"), visible=False, elem_id="training-lists")
                shown = gr.HTML(padding=False)
            wanted_count, odd_file = gr.State(None), gr.State("")
            with gr.Accordion(say("training.add"), open=False):
                upload = gr.File(label=say("training.upload"), file_types=[*SUFFIXES], type="filepath")
                kept = gr.HTML(elem_id="training-kept", padding=False)
                name = gr.Textbox(label=say("training.paste.name"), placeholder="my-data.jsonl")
                pasted = gr.Textbox(label=say("training.paste"), lines=5, elem_id="training-pasted")
                keep = gr.Button(say("training.paste.save"), interactive=False, elem_id="training-keep")
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

    def give_up(before: _WantedCount | None) -> None:
        if before is not None:
            before.given_up = True

    def looked(config: TrainingConfig, file: str = "") -> dict[Any, Any]:
        """The data set of `config` as it is shown; file: one that was just kept. Raises UserError where nothing can be shown."""
        nothing = {convert: gr.update(visible=False), lists: gr.update(visible=False), shown: "", wanted_count: None}
        folder = app.training.places.datasets
        try:
            first = app.training.first_rows(config)
        except NotUtf8 as error:
            place = name_below(folder, error.file)
            button = {convert: gr.update(visible=bool(error.likely)), odd_file: place}
            return {**nothing, **button, counts: sentence_html(error.message)}
        except SeveralLists as error:
            found = [(f"{name} ({count})", f"{error.file}:{name}") for name, count in error.lists.items()]
            return {**nothing, counts: sentence_html(error.message), lists: gr.update(choices=found, value=None, visible=True)}
        known = figures(first.prepared) if first.prepared and first.complete else None
        foreign = to_convert(folder, config.dataset) if not known or known.counts.get("broken") else ""
        return {
            **nothing,
            convert: gr.update(visible=bool(foreign)),
            odd_file: foreign,
            counts: first_html(first, config.cutoff),
            shown: rows_html(first),
            wanted_count: None if first.complete else _WantedCount(config, file),
            **({kept: kept_html(file, *facts_of(known))} if file and known else {}),
        }

    @told
    def previewed(before: _WantedCount | None, **values: Any) -> dict[Any, Any]:
        give_up(before)
        return looked(form.read(values))

    @told
    def counted(wanted: _WantedCount | None) -> Iterator[dict[Any, Any]]:
        """Waits for the figures of the whole data set, as long as nothing else is looked at."""
        shows: dict[Any, Any] = {counts: gr.skip()}
        if wanted is not None:
            try:
                with app.training.counting(wanted.config) as counting:
                    while (known := counting.wait(0.3)) is None and not wanted.given_up:
                        yield shows
                if known is not None:
                    shows = {counts: figures_html(known, wanted.config.cutoff)}
                    if wanted.file:
                        shows[kept] = kept_html(wanted.file, *facts_of(known))
            except UserError as error:
                shows = {counts: sentence_html(error.message)}
        yield {counts: gr.skip()} if wanted is not None and wanted.given_up else shows

    @told
    def converted(before: _WantedCount | None, place: str, request: gr.Request, **values: Any) -> dict[Any, Any]:
        app.access.require_admin(owner_of(request))
        give_up(before)
        convert_file(find_dataset(app.training.places.datasets, place))
        return looked(form.read(values))

    @told
    def list_chosen(before: _WantedCount | None, wanted: str, **values: Any) -> dict[Any, Any]:
        give_up(before)
        return {form.controls["dataset"]: wanted, **looked(form.read({**values, "dataset": wanted}))}

    def added(target: Path, values: dict[str, Any]) -> dict[Any, Any]:
        """What is shown of a data set that was just kept; it stays, whatever may be wrong with its rows."""
        chosen = {**choices(dataset=target.name), kept: kept_html(target.name)}
        try:
            config = form.read({**values, "dataset": target.name})
            chosen[kept] = kept_html(target.name, *_facts_without_model(app, config))
            return {**chosen, **looked(config, target.name)}
        except UserError as error:
            empty = {shown: "", wanted_count: None, convert: gr.update(visible=False), lists: gr.update(visible=False)}
            return {**chosen, **empty, counts: sentence_html(error.message)}

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
    def uploaded(before: _WantedCount | None, path: str | None, request: gr.Request, **values: Any) -> dict[Any, Any]:
        app.access.require_admin(owner_of(request))
        give_up(before)
        if not path:
            return {}
        target = _new_dataset(app, Path(path).name)
        shutil.copy(path, target)
        return added(target, values)

    @told
    def saved(before: _WantedCount | None, title: str, text: str, request: gr.Request, **values: Any) -> dict[Any, Any]:
        app.access.require_admin(owner_of(request))
        give_up(before)
        if not text.strip():
            raise UserError("Paste the rows first.")
        target = _new_dataset(
            app, title if Path(title).suffix.lower() in SUFFIXES else f"{title.strip() or 'pasted'}{_kind(text)}"
        )
        write_text(target, text)
        return {**added(target, values), name: "", pasted: "", keep: gr.update(interactive=False)}

    controls: Any = form.controls
    looking: dict[str, Any] = {"before": wanted_count, **controls}
    data: list[Any] = [counts, shown, convert, lists, kept, wanted_count, odd_file]
    chosen_controls: list[Any] = [recipe, *(form.controls[key] for key in _CHOSEN)]
    tab.select(opened, form.controls["model"], chosen_controls, **PRIVATE)  # type: ignore[arg-type]
    recipe.input(recipe_chosen, None, [about, *form.controls.values()], inputs_kwargs={"wanted": recipe, **controls}, **PRIVATE)
    asks(preview, previewed, None, data, inputs_kwargs=looking)
    asks(convert, converted, None, data, inputs_kwargs={"place": odd_file, **looking})
    lists.input(list_chosen, None, [form.controls["dataset"], *data], inputs_kwargs={"wanted": lists, **looking}, **PRIVATE)
    wanted_count.change(counted, wanted_count, [counts, kept], concurrency_limit=None, **PRIVATE)
    asks(start, begun, inputs_kwargs=controls)
    asks(queue, queued, inputs_kwargs=controls)
    answered(panel.copied(copied, None, list(form.controls.values()), **PRIVATE), "training-copied")  # pyright: ignore[reportAttributeAccessIssue]
    sent = upload.upload(uploaded, None, [*chosen_controls, *data], inputs_kwargs={"path": upload, **looking}, **PRIVATE)
    sent.then(None, None, None, js=_TO_THE_DATA, **PRIVATE)  # it may be far above, with the button that mends the file
    pasted.change(None, pasted, keep, js=_WHEN_PASTED, **PRIVATE)
    asks(
        keep,
        saved,
        None,
        [*chosen_controls, *data, name, pasted, keep],
        inputs_kwargs={"title": name, "text": pasted, **looking},
    )


def _facts_without_model(app: App, config: TrainingConfig) -> list[str]:
    """Format and number of rows, as far as they are known at once."""
    try:
        rows = read_rows(app.training.places.datasets, config.dataset, FIRST_ROWS)
        name, _ = choose_format(config, app.training.places, rows)
    except UserError:
        return []
    return [name, said(f"{len(rows.rows) + len(rows.problems)} rows")] if rows.complete else [name]


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
