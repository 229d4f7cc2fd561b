"""LaTeX as models write it, as MathML Core, which browsers draw themselves with the font that static/ holds."""

from __future__ import annotations

import html
import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from math_core import LatexToMathML

LONGEST_FORMULA = 5_000
"""In characters. What is longer, or never closed, is no formula but a model that repeats itself, and shown as it was written."""
MOST_EXPANSIONS = 100
"""Of commands that a formula defines for itself."""


@lru_cache(maxsize=2048)
def formula(source: str, *, display: bool) -> str:
    """LaTeX as MathML without styles; what is too long or no LaTeX is shown as it was written.

    display: it stands on its own, with the limits of sums below and above them.
    """
    from math_core import LatexError

    if len(source) <= LONGEST_FORMULA:
        try:
            return _with_classes(_converter().convert_with_local_state(_plain(source), displaystyle=display))
        except LatexError:
            pass  # half a formula, or one that LaTeX would refuse too
    return f"<code>{html.escape(source)}</code>"


_MACROS = {
    "mbox": r"\text{#1}",
    "hbox": r"\text{#1}",
    "pmb": r"\boldsymbol{#1}",
    "abs": r"\left|#1\right|",
    "norm": r"\left\|#1\right\|",
    "Tr": r"\operatorname{Tr}",
    "hdots": r"\ldots",
    "href": "#2",
}
"""Commands that models use and the converter does not know."""


@lru_cache(maxsize=1)
def _converter() -> LatexToMathML:
    from math_core import LatexToMathML

    return LatexToMathML(
        macros=_MACROS,
        ignore_unknown_commands=True,
        allow_unreliable_rendering=True,
        fancy_error=False,
        max_expansions=MOST_EXPANSIONS,
    )


# --- what the converter does not know, said in what it does

_ENVIRONMENTS = {
    **dict.fromkeys(("align", "flalign", "split"), "aligned"),
    **dict.fromkeys(("gather", "multline", "equation", "displaymath"), "gathered"),
    "smallmatrix": "matrix",
}
"""Those of whole pages, which would be numbered, as those within a formula."""
_ENVIRONMENT = re.compile(rf"\\(begin|end)\{{({'|'.join(_ENVIRONMENTS)})\*?\}}")
_COLUMNS = re.compile(
    r"\\begin\{(?:(eqnarray)\*?|(alignat|alignedat)\*?\}\{\d+)\}|\\end\{(?:(eqnarray)|(alignat|alignedat))\*?\}"
)
_TAG = re.compile(r"\\tag(\*)?\{([^{}]*)\}")
_LABEL = re.compile(r"\\label\{[^{}]*\}")
_ROW_GAP = re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\]")
_ANGLE = re.compile(r"\\(left|right)\s*([<>])")
_MATH_IN_TEXT = re.compile(r"\\(text|mbox|textrm)\{([^{}$]*\$[^{}]*)\}")
_SUBSTACK = re.compile(r"\\substack\{((?:[^{}]|\{[^{}]*\})*)\}")
_NAMED_OPERATOR = re.compile(r"\\mathop\s*\{\s*\\(?:mathrm|textrm|text|rm|operatorname\*?)\s*\{([^{}]*)\}\s*\}(?:\s*\\limits)?")
_CHEMISTRY = re.compile(r"\\ce\{((?:[^{}]|\{[^{}]*\})*)\}")


def _plain(source: str) -> str:
    source = _ENVIRONMENT.sub(lambda found: rf"\{found[1]}{{{_ENVIRONMENTS[found[2]]}}}", source)
    source = _COLUMNS.sub(_columns, source)
    source = _LABEL.sub("", _TAG.sub(lambda tag: rf"\qquad\text{{{tag[2] if tag[1] else f'({tag[2]})'}}}", source))
    source = _ROW_GAP.sub(r"\\\\", source)
    source = _ANGLE.sub(lambda found: rf"\{found[1]}\{'langle' if found[2] == '<' else 'rangle'} ", source)
    source = _MATH_IN_TEXT.sub(_text_and_math, source)
    source = _SUBSTACK.sub(_stacked, source)
    source = _NAMED_OPERATOR.sub(r"\\operatorname*{\1}", source)
    return _CHEMISTRY.sub(lambda found: rf"\mathrm{{{_chemistry(found[1])}}}", source)


def _columns(found: re.Match[str]) -> str:
    if found[1] or found[3]:
        return r"\begin{array}{rcl}" if found[1] else r"\end{array}"
    return r"\begin{aligned}" if found[2] else r"\end{aligned}"


def _text_and_math(found: re.Match[str]) -> str:
    """\\text{for $x$ only} as text, formula, text.

    >>> _text_and_math(_MATH_IN_TEXT.match(r"\\text{for $x$}"))
    '\\\\text{for }{x}'
    """
    pieces = found[2].split("$")
    return "".join((f"{{{piece}}}" if at % 2 else rf"\text{{{piece}}}") for at, piece in enumerate(pieces) if piece)


def _stacked(found: re.Match[str]) -> str:
    rows = [row.strip() for row in found[1].split(r"\\")]
    if len(rows) == 2:
        return rf"{{{rows[0]} \atop {rows[1]}}}"
    return r"\begin{matrix}" + r"\\".join(rf"\scriptstyle {row}" for row in rows) + r"\end{matrix}"


def _chemistry(source: str) -> str:
    """The formulas of mhchem that need no more than subscripts, charges and arrows.

    >>> _chemistry("2H2 + O2 -> 2H2O")
    '2H_{2} + O_{2} \\\\rightarrow 2H_{2}O'
    """
    source = source.replace("<=>", r"\rightleftharpoons").replace("<->", r"\leftrightarrow")
    source = re.sub(r"(?<![-\\])->", r"\\rightarrow", source)
    return re.sub(r"(?<=[A-Za-z)\]])(\d+)", r"_{\1}", source)


# --- the converter's styles as classes: no style reaches the page

_STYLED = re.compile(r' style="([^"]*)"')
_CLASSES = (
    ("text-align: left", "left"),
    ("text-align: right", "right"),
    ("padding-left: 0", "close-left"),
    ("padding-right: 0", "close-right"),
    ("padding-left:1em", "apart"),
    ("border-left", "line-left"),
    ("border-right", "line-right"),
    ("border-top", "line-top"),
    ("border-bottom", "line-bottom"),
)
_COLOUR = re.compile(r"color:(#[0-9A-Fa-f]{6})")
_ENCLOSED = re.compile(r'<menclose notation="(\w+)">')
_ARROW = re.compile("<mo[^>]*>\u20d7</mo>")
"""A combining one is drawn before its letter."""
_STRIKE = re.compile(r'<mrow class="menclose-\w+"></mrow>')
CLASSES = frozenset(
    {name for _, name in _CLASSES} | {"box", "updiagonalstrike", "downdiagonalstrike", "horizontalstrike", "vector"}
)
"""Those that a formula may have; chat.css says how they look."""


def _with_classes(mathml: str) -> str:
    """The same without styles. Frames and strokes (menclose), which most browsers do not draw, are classes too."""
    mathml = _STYLED.sub(_class_of, mathml)
    mathml = _STRIKE.sub("", _ENCLOSED.sub(r'<mrow class="\1">', mathml).replace("</menclose>", "</mrow>"))
    return _ARROW.sub('<mo stretchy="false" class="vector">→</mo>', mathml)


def _class_of(style: re.Match[str]) -> str:
    names = [name for start, name in _CLASSES if any(part.strip().startswith(start) for part in style[1].split(";"))]
    colour = _COLOUR.search(style[1])
    return (f' class="{" ".join(names)}"' if names else "") + (f' mathcolor="{colour[1]}"' if colour else "")
