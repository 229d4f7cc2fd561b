"""What a data set looks like, as HTML of our own making: every text in it is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping

from modules.i18n.sentences import said
from modules.services.datasets import Figures, FirstRows, ShownRow, figures_of, shown_rows

_SHOWN_CHARACTERS, _BARS = 4000, 24


def first_html(first: FirstRows, cutoff: int) -> str:
    """What is known at once: everything of a small data set, the beginning of a large one."""
    known = figures_of(first)
    if known is None:
        return f"<p>{html.escape(said(first.reason))}</p>{_counting()}"
    if first.complete:
        return figures_html(known, cutoff)
    beginning = f"The beginning: {known.good} of {known.rows} rows are good."
    return f"<p>{_name(known)} · {html.escape(said(beginning))}</p>{_counting()}"


def figures_html(known: Figures, cutoff: int) -> str:
    """How many rows there are, how long they are, and what is wrong with which."""
    lengths = histogram(known.lengths, cutoff) if known.lengths else ""
    return f"<p>{_name(known)} · {html.escape(said(known.sentence))}</p>{lengths}{_problems(known)}"


def rows_html(first: FirstRows) -> str:
    """The first rows with learnt tokens marked."""
    return "".join(map(_row, shown_rows(first)))


def sentence_html(text: str) -> str:
    return f"<p>{html.escape(said(text))}</p>"


def kept_html(name: str, *facts: str) -> str:
    """What became of a file that was sent: what it is called, and what is known of it."""
    return f'<p class="tl-kept" role="status">{html.escape(" · ".join((name, *facts)))}</p>'


def facts_of(known: Figures) -> list[str]:
    return [known.format, said(f"{known.rows} rows"), said(f"{known.tokens} tokens")]


def _name(known: Figures) -> str:
    template = f" · {html.escape(known.template)}" if known.template else ""
    return f"<strong>{html.escape(known.format)}</strong>{template}"


def _counting() -> str:
    words = html.escape(said("All rows are being counted …"))
    return f'<p class="tl-counting" role="status">{words}</p>'


def _row(row: ShownRow) -> str:
    kind = ' class="tl-rejected"' if row.rejected else ""
    left = _SHOWN_CHARACTERS
    parts = []
    for text, learnt in row.runs:
        part = html.escape(text[:left])
        parts.append(f"<mark{kind}>{part}</mark>" if learnt else part)
        left -= len(text)
        if left <= 0:
            parts.append("…")
            break
    if row.whole:
        cut = said(f", {row.cut} more cut off") if row.cut else ""
        about = said(f"row {row.number} · {row.tokens} tokens{cut}")
    else:
        about = said(f"row {row.number} · its first {row.tokens} tokens")
    return f'<div class="tl-example"><small>{about}</small><pre>{"".join(parts)}</pre></div>'


def _problems(known: Figures) -> str:
    items = "".join(
        f"<li><b>{problem.row}</b> {html.escape(said(problem.kind))}: {html.escape(said(problem.reason))}</li>"
        for problem in known.told
    )
    more = sum(known.counts.values()) - len(known.told)
    return f'<ul class="tl-problems">{items}{f"<li>… {more}</li>" if more else ""}</ul>' if items else ""


def histogram(lengths: Mapping[int, int], cutoff: int) -> str:
    """Bars of how many rows have how many tokens, as SVG; those beyond the cutoff in another colour. lengths: tokens → rows."""
    top = max(lengths)
    size = max(1, -(-top // _BARS))
    counts = [0] * (top // size + 1)
    for length, count in lengths.items():
        counts[length // size] += count
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
