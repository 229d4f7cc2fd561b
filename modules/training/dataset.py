"""A data set made ready: rows read, rendered and tokenised, with every row that is left out or cut accounted for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.errors import NoChatTemplate, UserError
from modules.generation.control_tokens import ChatEncoder, ControlTokens, without_marks
from modules.library.templates import TemplateLibrary
from modules.training.config import TrainingConfig
from modules.training.formats import (
    Conversation,
    Format,
    KeySetFormat,
    Preference,
    PreferenceFormat,
    RowError,
    TextFormat,
    guess_format,
    read_format,
)
from modules.training.learnable import SAME, check_end_of_text, check_ends, learnable, notes_on_ends
from modules.training.render import Rendered, render
from modules.training.row import Row
from modules.training.rows import Problem, Rows, read_rows
from modules.training.samples import Marked, Sample, mark, pieces_of_text, tokenize


@dataclass(frozen=True)
class Prepared:
    """samples in the data's order; problems: every row that was cut or left out; rows: how many were read.

    format, template: what was used, by name ("model" is the model's own template, "" none).
    pairs: samples stand in twos, a chosen answer and the rejected one. notes: what else is worth knowing before the start.
    """

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    rows: int
    format: str
    template: str
    pairs: bool = False
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> int:
        """How many rows something is learnt from."""
        return len({sample.row for sample in self.samples})

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have which problem."""
        return dict(Counter(problem.kind for problem in self.problems))

    @property
    def sentence(self) -> str:
        """All of it for people."""
        tokens = sum(len(sample.tokens) for sample in self.samples)
        labels = sum(sample.labels for sample in self.samples)
        counts = "".join(f", {count} {kind}" for kind, count in self.counts.items())
        made = f"{len(self.samples) // 2} pairs" if self.pairs else f"{len(self.samples)} sequences"
        told = (
            f"{self.rows} rows read, {self.good} good{counts}; "
            f"{made} of {tokens} tokens, {labels} of them {'compared' if self.pairs else 'learnt'}"
        )
        return "; ".join([told, *self.notes])


@dataclass(frozen=True)
class Places:
    """The folders that data comes from."""

    datasets: Path
    formats: Path
    templates: Path


def prepare(
    config: TrainingConfig,
    places: Places,
    tokenizer: Any,
    model_name: str,
    *,
    name: str | None = None,
    limit: int | None = None,
) -> Prepared:
    """Samples of the config's data set, or of `name` in the same format; the first `limit` rows where given.

    Raises UserError where nothing can be learnt from it, saying why.
    """
    if config.loss == "after" and not config.loss_after:
        raise UserError("Loss after a marker needs the marker.", param="loss_after")
    return prepare_rows(config, places, tokenizer, model_name, read_rows(places.datasets, name or config.dataset, limit))


def prepare_rows(config: TrainingConfig, places: Places, tokenizer: Any, model_name: str, rows: Rows) -> Prepared:
    """Samples of rows that were read. Raises UserError."""
    form_name, form = choose_format(config, places, rows)
    pairs = config.objective == "dpo"
    if pairs and not isinstance(form, PreferenceFormat):
        raise UserError(
            f"The objective dpo compares a chosen answer with a rejected one, and the format {form_name} has none. "
            "Take data with the columns prompt, chosen and rejected, or the objective sft.",
            param="objective",
        )
    if isinstance(form, TextFormat) and config.loss == "after":
        raise UserError("Plain text is learnt as it is: set the loss to all.", param="loss")
    if isinstance(form, TextFormat | KeySetFormat):
        if config.template != "auto":
            raise UserError(f"The format {form_name} brings its own words: leave the template on auto.", param="template")
        template, source = "", ""
    else:
        template, source = choose_template(config, places, tokenizer, model_name, form)
    words = f"the format {form_name}"
    if template:
        words = "the model's own template" if template == "model" else f"the template {template}"
    samples, problems, notes = _samples(rows, form, source, config, tokenizer, words)
    kept, dropped = learnable(samples, config, 2 if pairs else 1)
    problems = sorted([*rows.problems, *problems, *dropped], key=lambda problem: problem.row)
    prepared = Prepared(
        tuple(kept), tuple(problems), len(rows.rows) + len(rows.problems), form_name, template, pairs, (*rows.notes, *notes)
    )
    if not kept:
        raise UserError(_nothing_left(prepared, config), param="dataset")
    return prepared


def choose_format(config: TrainingConfig, places: Places, rows: Rows) -> tuple[str, Format]:
    """The format by name, or the one that fits the columns. Raises UserError that names a missing column."""
    if not rows.rows:
        reason = f": {rows.problems[0].reason}" if rows.problems else ""
        raise UserError(f"The data set {config.dataset} has no rows that can be read{reason}.", param="dataset")
    name = config.format
    if rows.text:
        name = "text"
    elif name == "auto":
        name = guess_format(places.formats, rows.columns, rows.rows[0][1])
    form = read_format(places.formats, name)
    missing = [column for column in form.needed() if column not in rows.columns]
    if missing:
        raise UserError(
            f"The format {name} needs the column {', '.join(missing)}, and the data has {', '.join(rows.columns)}.",
            param="format",
        )
    return name, form


def choose_template(config: TrainingConfig, places: Places, tokenizer: Any, model_name: str, form: Format) -> tuple[str, str]:
    """(name, Jinja source) of the chat template. Raises UserError where there is none."""
    from modules.generation.local.prompt import chat_template_of

    library = TemplateLibrary(places.templates)
    own = chat_template_of(tokenizer)
    match config.template:
        case "model":
            if own is None:
                raise NoChatTemplate
            return "model", own
        case "format":
            if form.template:
                return form.template, library.read(form.template)
            raise UserError("This format has no words of its own: choose a chat template by name.", param="template")
        case "auto":
            try:
                chosen = library.resolve_chat_template(model_name, own)
            except NoChatTemplate:
                if not form.template:
                    raise
                return form.template, library.read(form.template)
            return chosen.origin, chosen.source
        case name:
            return name, library.read(name)


def split(samples: Sequence[Sample], config: TrainingConfig) -> tuple[list[Sample], list[Sample]]:
    """(train, held out). Raises UserError where one of them would be empty."""
    rows = sorted({sample.row for sample in samples})
    count = max(1, round(len(rows) * config.eval_share))
    if count >= len(rows):
        raise UserError(
            f"There are {len(rows)} usable rows: too few to hold out a share of {config.eval_share:g}.", param="eval_share"
        )
    chosen = set(random.Random(f"{config.seed}/held out").sample(rows, count))
    return [one for one in samples if one.row not in chosen], [one for one in samples if one.row in chosen]


def _samples(
    rows: Rows, form: Format, source: str, config: TrainingConfig, tokenizer: Any, words: str
) -> tuple[list[Sample], list[Problem], tuple[str, ...]]:
    """(samples, problems, notes); words: what the texts are made with, for people."""
    if isinstance(form, TextFormat):
        check_end_of_text(config, tokenizer)
    marked: list[Marked] = []
    samples: list[Sample] = []
    problems: list[Problem] = []
    encoder = ChatEncoder(tokenizer)
    special = {key: str(text) for key, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    for number, row in rows.rows:
        try:
            if isinstance(form, TextFormat):
                example = form.read_row(row)
                for piece in pieces_of_text(example.text, number, tokenizer, config):
                    if isinstance(piece, str):
                        problems.append(Problem("too short", number, piece))
                    else:
                        samples.append(piece)
            else:
                marked += _marked(row, number, form, source, special, encoder.control, config)
        except RowError as error:
            problems.append(Problem(error.kind, number, error.reason))
    check_ends(marked, tokenizer, words)
    samples += tokenize(marked, tokenizer, encoder, config.cutoff)
    return samples, problems, notes_on_ends(marked, config, words)


def _marked(
    row: Row,
    number: int,
    form: Format,
    source: str,
    special: dict[str, str],
    control: ControlTokens,
    config: TrainingConfig,
) -> list[Marked]:
    def rendered(conversation: Conversation) -> list[Rendered]:
        try:
            texts = render(conversation, source, special, control)
        except UserError as error:
            raise RowError("broken", error.message) from None
        _check_tools_are_shown(conversation, texts)
        return texts

    if isinstance(form, KeySetFormat):
        try:
            row = control.marked(row)
        except UserError as error:
            raise RowError("broken", error.message) from None
    match form.read_row(row):
        case Conversation() as conversation:
            texts, begin = rendered(conversation), False
        case Preference(chosen, rejected) if config.objective == "dpo":
            texts, begin = [*rendered(chosen), *rendered(rejected)], False
            if len(texts) != 2:
                raise RowError("broken", "this template shows earlier answers otherwise: one answer alone can be compared")
        case Preference(chosen, _):
            texts, begin = rendered(chosen), False
        case plain:
            ends_open = any(value and plain.text.endswith(value) for value in row.values() if isinstance(value, str))
            texts, begin = [Rendered(plain.text, plain.answers, True, (len(plain.text),) if ends_open else ())], True
    found = [mark(text, number, config, begin=begin) for text in texts]
    if None in found:
        raise RowError("no answer", f"the marker {config.loss_after!r} is not in it")
    return [item for item in found if item is not None]


def _check_tools_are_shown(conversation: Conversation, texts: Sequence[Rendered]) -> None:
    """Some templates leave calls of tools out, and an empty answer would be learnt. Raises RowError."""
    calls = [call for one in conversation.messages if not one.content for call in one.extra.get("tool_calls") or ()]
    functions = [call["function"] for call in calls if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping)]
    names = {str(function["name"]) for function in functions if function.get("name")}
    shown = "".join(without_marks(one.text) for one in texts) if names else ""
    if missing := sorted(name for name in names if name not in shown):
        raise RowError("broken", f"the template does not show the call of {missing[0]}: choose one that knows tools")


def _nothing_left(prepared: Prepared, config: TrainingConfig) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in prepared.counts.items())
    kind = max(prepared.counts, key=lambda kind: prepared.counts[kind])
    first = next(problem for problem in prepared.problems if problem.kind == kind)
    advice = (
        f"Raise the cutoff, which is {config.cutoff} tokens."
        if kind == SAME or kind.startswith("too long")
        else "Check the format and the columns."
    )
    return f"Nothing of the {prepared.rows} rows can be learnt: {counts}. Row {first.row}: {first.reason}. {advice}"
