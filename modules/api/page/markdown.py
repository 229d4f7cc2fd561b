"""Markdown of models as safe HTML blocks: code coloured, formulas as MathML, everything cleaned at the end."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock, fence
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline.state_inline import Delimiter, StateInline
from markdown_it.token import Token
from mdit_py_plugins.amsmath import amsmath_block, amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.dollarmath.index import math_block_dollar
from mdit_py_plugins.footnote import footnote_plugin

from modules.api.page import formulas
from modules.api.page.formulas import LONGEST_FORMULA, formula
from modules.api.page.links import link_addresses
from modules.generation.reasoning import Kind, segments

_CJK = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


def _words(text: str) -> set[str]:
    return set(text.split())


_MATH_TAGS = _words(
    "math mrow mi mo mn ms mtext mspace mfrac msqrt mroot msup msub msubsup munder mover munderover mmultiscripts mprescripts"
    " mtable mtr mtd mpadded mphantom mstyle merror"
)
_TEXT_TAGS = _words(
    "p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code span div em strong b i u s del a table thead tbody tr th td"
    " sup sub section input dl dt dd caption mark small kbd"
)
_MATH_ATTRIBUTES = _words(
    "stretchy fence form largeop movablelimits separator minsize maxsize symmetric lspace rspace mathvariant accent"
    " accentunder width height depth linethickness displaystyle scriptlevel mathcolor"
)
_ATTRIBUTES = {
    **dict.fromkeys(_MATH_TAGS, _MATH_ATTRIBUTES),
    "math": {"display"},
    "a": {"href", "title"},
    "ol": {"start"},
    "th": {"align", "colspan", "rowspan"},
    "td": {"align", "colspan", "rowspan"},
    "pre": {"data-language"},
    "input": {"type", "checked", "disabled"},
}
_CLASSES = {
    **{tag: set(formulas.CLASSES) for tag in ("mtable", "mtd", "mrow", "mo")},
    "span": _words("k s c m f t d i math inline"),
    "div": _words("math block"),
    "li": {"task-list-item"},
    "ul": {"contains-task-list"},
    "section": {"footnotes"},
    "sup": {"footnote-ref"},
}


@dataclass(frozen=True)
class Block:
    """A piece of a message that stands for itself. start: where its source begins, in characters of the message.

    settled: what follows it in the message cannot change where it ends.
    """

    start: int
    kind: Kind
    html: str
    settled: bool = field(default=True, compare=False)


def render(text: str, opened: str | None = None) -> list[Block]:
    """All blocks of a finished message. opened: see reasoning.segments."""
    return [block for segment in segments(text, opened) for block in _blocks(text, segment.kind, segment.start, segment.end)]


def as_html(text: str) -> str:
    """A text that is HTML itself, as a model of web pages writes it: what may be shown of it, and nothing that runs or fetches."""
    return _cleaned(text)


class LiveMarkdown:
    """A message that grows: blocks that are finished are rendered once, and only the end again with each update."""

    def __init__(self) -> None:
        self._frozen: list[Block] = []
        self._begins = 0
        self.blocks: list[Block] = []

    def update(self, text: str, opened: str | None = None) -> list[Block]:
        """All blocks of `text`, which continues what was given before. The last ones may still change.

        opened: see reasoning.segments.
        """
        parts = segments(text, opened)
        last = parts[-1]
        if self._begins and not any(part.kind == self._kind and part.start <= self._begins <= part.end for part in parts):
            self._frozen, self._begins = [], 0  # what looked like text turned out to be thinking
        begins = self._begins
        fresh: list[Block] = []
        for part in parts:
            start = max(part.start, begins)
            if start >= part.end:
                continue
            blocks = _blocks(text, part.kind, start, part.end, ended=part is not last)
            fresh += blocks
            keep_open = 0 if part is not last else _open_blocks(blocks, part.end)
            if len(blocks) > keep_open:
                self._frozen += blocks[: len(blocks) - keep_open]
                self._begins = blocks[-keep_open].start if keep_open else part.end
                self._kind: Kind = part.kind
        done = [block for block in self._frozen if block.start < begins]
        self.blocks = done + fresh
        return self.blocks


def _open_blocks(blocks: Sequence[Block], end: int) -> int:
    """How many of the last blocks may still change: the last, and the one before while the last has only just begun.

    From a block on that is not settled, all may.
    """
    unsettled = next((len(blocks) - at for at, block in enumerate(blocks) if not block.settled), 0)
    return max(unsettled, 2 if len(blocks) > 1 and end - blocks[-1].start < 8 else 1)


def _blocks(text: str, kind: Kind, start: int, end: int, *, ended: bool = True) -> list[Block]:
    """The top-level Markdown blocks of text[start:end]. ended: no more text follows, so the last one is coloured too."""
    source = text[start:end]
    tokens = _parser().parse(source)
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    blocks: list[Block] = []
    group: list[Token] = []
    groups: list[list[Token]] = []
    for token in tokens:
        group.append(token)
        if (
            token.level == 0
            and token.nesting <= 0
            and (group[0].type != "footnote_block_open" or token.type.endswith("block_close"))
        ):
            groups.append(group)
            group = []
    for index, group in enumerate(groups):
        first_line = group[0].map[0] if group[0].map else len(lines) - 1
        finished = ended or index < len(groups) - 1
        raw = _parser().renderer.render(group, _parser().options, {"finished": finished})
        if clean := _cleaned(raw).strip():
            settled = all(token.meta.get("settled", True) for token in group)
            blocks.append(Block(start + lines[min(first_line, len(lines) - 1)], kind, clean, settled))
    return blocks


def _cleaned(raw: str) -> str:
    return _cleaner().clean(raw)


@lru_cache(maxsize=1)
def _cleaner() -> nh3.Cleaner:
    return nh3.Cleaner(
        tags=_TEXT_TAGS | _MATH_TAGS,
        attributes=_ATTRIBUTES,
        allowed_classes=_CLASSES,
        url_schemes={"http", "https", "mailto"},
        set_tag_attribute_values={"a": {"target": "_blank"}},
        link_rel="noopener noreferrer nofollow",
    )


# --- the parser


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.core.ruler.after("inline", "task_list", _task_list)
    parser.core.ruler.after("task_list", "addresses", link_addresses)
    footnote_plugin(parser)
    dollarmath_plugin(parser, renderer=_dollar_math)
    parser.inline.ruler.at("math_inline", _dollar_inline)
    parser.block.ruler.at("math_block", _within_bounds(math_block_dollar(allow_labels=False, allow_blank_lines=True)))
    amsmath_plugin(parser, renderer=lambda content: formula(content, display=True))
    interrupts = ["paragraph", "reference", "blockquote", "list", "footnote_def"]
    parser.block.ruler.at("amsmath", _within_bounds(amsmath_block), {"alt": interrupts})
    parser.block.ruler.before("fence", "bracket_math", _within_bounds(_bracket_block), {"alt": ["paragraph"]})
    parser.block.ruler.at("fence", _fence, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    parser.inline.ruler.before("escape", "bracket_math", _bracket_inline)
    parser.inline.ruler.at("emphasis", _emphasis)
    parser.inline.ruler.before("escape", "line_break_tag", _line_break_tag)
    parser.add_render_rule("bracket_inline", _render_bracket_inline)
    parser.add_render_rule("bracket_block", _render_bracket_block)
    parser.add_render_rule("fence", _render_fence)
    parser.add_render_rule("code_block", _render_fence)
    parser.add_render_rule("image", _render_image)
    for cell in ("th_open", "td_open"):
        parser.add_render_rule(cell, _render_cell)
    parser.add_render_rule("footnote_ref", _render_footnote_mark)
    parser.add_render_rule("footnote_anchor", lambda *_: "")
    return parser


_TASK = re.compile(r"\[([ xX])\]\s")


def _task_list(state: StateCore) -> None:
    """[ ] and [x] at the beginning of list items as boxes."""
    lists: list[Token] = []
    for before, opened, token in zip(state.tokens, state.tokens[1:], state.tokens[2:], strict=False):
        if before.type in ("bullet_list_open", "ordered_list_open"):
            lists.append(before)
        elif before.type in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
        if (before.type, opened.type, token.type) != ("list_item_open", "paragraph_open", "inline") or not token.children:
            continue
        if task := _TASK.match(token.children[0].content):
            token.children[0].content = token.children[0].content[3:]
            checked = "" if task[1] == " " else ' checked="checked"'
            box = Token("html_inline", "", 0, content=f'<input type="checkbox" disabled="disabled"{checked}>')
            token.children.insert(0, box)
            before.attrSet("class", "task-list-item")
            lists[-1].attrSet("class", "contains-task-list")


def _dollar_math(content: str, options: dict[str, Any]) -> str:
    return formula(content, display=options["display_mode"])


MOST_FORMULA_LINES = 200


_OPENS_FORMULA = re.compile(r"\$\$(?!\$)|\\\[|\\begin\{(\w+\*?)\}")
BlockRule = Callable[[StateBlock, int, int, bool], bool]


def _within_bounds(rule: BlockRule) -> BlockRule:
    """The same rule for formulas, looking for their end no further than a formula can be long, and only where there is one.

    Else each of many lines that open one has all lines after it read in vain.
    """

    def bounded(state: StateBlock, first: int, last: int, silent: bool) -> bool:
        opened = _OPENS_FORMULA.match(state.src, state.bMarks[first] + state.tShift[first])
        if opened is None or (opened[0] == "$$" and _line(state, first).rstrip().endswith("$$$")):
            return False  # the second is how dear a restaurant is
        last = min(last, first + MOST_FORMULA_LINES)
        closing = {"$$": "$$", r"\[": r"\]"}.get(opened[0]) or rf"\end{{{opened[1]}}}"
        if state.src.find(closing, opened.end(), state.eMarks[last - 1]) < 0:
            return False
        return rule(state, first, last, silent)

    return bounded


_UPTO = f"{{1,{LONGEST_FORMULA}}}"
_ONE_DOLLAR = re.compile(rf"\$(?![\s$])((?:\\.|[^\\$]){_UPTO})\$(?![\d$])", re.DOTALL)
_TWO_DOLLARS = re.compile(rf"\$\$(?!\$)((?:\\.|[^\\$]|\$(?!\$)){_UPTO})\$\$(?![\d$])", re.DOTALL)
_AMOUNT = re.compile(r"[-+~≈]?\.?\d[\d,.]*")
_PROSE = re.compile(rf"[^\W\d_]{{2,}}\S*\s|{_CJK.pattern}|[,;:]$")


def _dollar_inline(state: StateInline, silent: bool) -> bool:
    """$ … $ and $$ … $$ inside a paragraph, unless they are money."""
    src, at = state.src, state.pos
    if src[at] != "$":
        return False
    two, before = src.startswith("$$", at), src[at - 1 : at] if at else ""
    if before == "$" or before.isdigit() or (not two and before.isalpha() and not _CJK.match(before)):
        return False  # 5$, US$, and the rest of a row of them
    found = (_TWO_DOLLARS if two else _ONE_DOLLAR).match(src, at)
    if found is None or not found[1].strip() or (not two and _is_money(found[1], src[found.end() : found.end() + 1])):
        return False
    if not silent:
        token = state.push("math_inline_double" if two else "math_inline", "math", 0)
        token.content, token.markup = found[1], "$$" if two else "$"
    state.pos = found.end()
    return True


def _is_money(content: str, after: str) -> bool:
    """Whether what stands between two dollar signs is no formula: it ends with a space, goes on from one name of several
    ($A/$B), or is an amount with words after it, none of them LaTeX.

    >>> [_is_money(text, "") for text in ("3 and 5", "3到5", "2x + 3", r"3 \\text{ and } 5")]
    [True, True, False, False]
    """
    if content[-1].isspace() or (content[-1] in "/:,;|&(-–" and (after.isalnum() or after in "{")):
        return True
    amount = _AMOUNT.match(content)
    return amount is not None and not re.search(r"[\\^_{]", content) and bool(_PROSE.search(content, 1))


def _bracket_inline(state: StateInline, silent: bool) -> bool:
    r"""\( … \) and \[ … \] inside a paragraph."""
    closing = {r"\(": r"\)", r"\[": r"\]"}.get(state.src[state.pos : state.pos + 2])
    end = state.src.find(closing, state.pos + 2, state.pos + LONGEST_FORMULA) if closing else -1
    if closing is None or end < 0 or not state.src[state.pos + 2 : end].strip():
        return False
    if not silent:
        token = state.push("bracket_inline", "math", 0)
        token.content = state.src[state.pos + 2 : end]
        token.meta = {"display": closing == r"\]"}
    state.pos = end + 2
    return True


def _bracket_block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    r"""\[ … \] that begins a line and ends one."""
    begin = state.bMarks[first] + state.tShift[first]
    if not state.src.startswith(r"\[", begin):
        return False
    for line in range(first, last):
        start = begin + 2 if line == first else state.bMarks[line]
        end = start + len(state.src[start : state.eMarks[line]].rstrip())
        if state.src.endswith(r"\]", start, end):
            if not silent:
                token = state.push("bracket_block", "math", 0)
                token.block = True
                token.content = state.src[begin + 2 : end - 2]
                token.map = [first, line + 1]
            state.line = line + 1
            return True
    return False


# --- code that holds code

_MARKDOWN = {"markdown", "md", "mdx"}
_FENCE = re.compile(r"(`{3,}(?=[^`]*$)|~{3,})[ \t]*(.*?)[ \t]*$")
FURTHEST_FENCE = 200
"""In lines: no further on do fences tell whether one before them opens a block or ends it."""


def _fence(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """Fenced code as CommonMark has it, except that a fence of Markdown may hold others, as models write it."""
    opening = _FENCE.match(_line(state, first))
    if silent or opening is None or state.is_code_block(first) or (opening[2].split() or [""])[0].lower() not in _MARKDOWN:
        return fence(state, first, last, silent)
    end = first + 1
    fences: list[tuple[int, bool]] = []  # line, whether nothing stands behind the signs
    while end < last and (state.isEmpty(end) or state.sCount[end] >= state.blkIndent):
        found = _FENCE.match(_line(state, end))
        if found and found[1][0] == opening[1][0] and len(found[1]) >= len(opening[1]):
            fences.append((end, not found[2]))
        end += 1
    closing, settled = _closing_fence(state, fences, end)
    until = end if closing is None else closing
    state.line = end if closing is None else closing + 1
    token = state.push("fence", "code", 0)
    token.info, token.markup = opening[2], opening[1]
    token.content = state.getLines(first + 1, until, state.sCount[first], True)
    token.map = [first, state.line]
    token.meta = {"settled": settled}
    return True


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]


def _closing_fence(state: StateBlock, fences: Sequence[tuple[int, bool]], end: int) -> tuple[int | None, bool]:
    """(the line of the fence that ends the block of Markdown around `fences`, whether more text cannot change that).

    One with a language opens a block inside, and the next without ends that. Outside of those, one without a language ends
    the whole, unless it opens a block too: then code follows at once, and the next fence ends it, before an empty line or a
    fence with a language.
    """

    def free_after(line: int) -> bool | None:
        """Whether the next line is empty; None where there is none yet."""
        return None if line + 1 >= end else state.isEmpty(line + 1)

    at, inside = 0, False
    while at < len(fences):
        line, bare = fences[at]
        following = [one for one in fences[at + 1 : at + 3] if one[0] - line <= FURTHEST_FENCE]
        at += 1
        if inside or not bare:
            inside = not bare
            continue
        free = free_after(line)
        if free is not False:
            return line, free is True
        if not following:
            return line, end - line > FURTHEST_FENCE
        if not following[0][1]:
            return line, True
        free = free_after(following[0][0])
        if free is False and (len(following) < 2 or following[1][1]):
            return line, len(following) == 2 or end - line > FURTHEST_FENCE
        inside = True  # it opens a block
    return None, True


def _render_bracket_inline(_self: Any, tokens: Sequence[Token], at: int, *_: Any) -> str:
    return formula(tokens[at].content, display=tokens[at].meta["display"])


def _render_bracket_block(_self: Any, tokens: Sequence[Token], at: int, *_: Any) -> str:
    return f'<div class="math block">{formula(tokens[at].content, display=True)}</div>'


def _emphasis(state: StateInline, silent: bool) -> bool:
    """* and _ as CommonMark has them, except beside Chinese, Japanese and Korean, which put no spaces around words."""
    marker = state.src[state.pos]
    if silent or marker not in "_*":
        return False
    scanned = state.scanDelims(state.pos, marker == "*")
    can_open, can_close = scanned.can_open, scanned.can_close
    if marker == "*":
        before = state.src[state.pos - 1 : state.pos] if state.pos else ""
        after = state.src[state.pos + scanned.length : state.pos + scanned.length + 1]
        can_open = can_open or bool(_CJK.match(before) and after.strip())
        can_close = can_close or bool(_CJK.match(after) and before.strip())
    for _ in range(scanned.length):
        token = state.push("text", "", 0)
        token.content = marker
        state.delimiters.append(Delimiter(ord(marker), scanned.length, len(state.tokens) - 1, -1, can_open, can_close))
    state.pos += scanned.length
    return True


_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def _line_break_tag(state: StateInline, silent: bool) -> bool:
    """<br> is the one tag that models put into tables and mean."""
    match = _BREAK.match(state.src, state.pos)
    if match is None:
        return False
    if not silent:
        state.push("hardbreak", "br", 0)
    state.pos = match.end()
    return True


def _render_cell(self: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """A column's alignment as an attribute: no style from a model reaches the page."""
    if style := tokens[at].attrs.pop("style", None):
        tokens[at].attrSet("align", str(style).removeprefix("text-align:"))
    return self.renderToken(tokens, at, options, env)


def _render_image(_self: Any, tokens: Sequence[Token], at: int, *_: Any) -> str:
    """A link: pictures from elsewhere would tell a stranger that and when this was read."""
    source, words = str(tokens[at].attrs.get("src", "")), tokens[at].content
    return f'<a href="{html.escape(source)}">{html.escape(words or source)}</a>'


def _render_footnote_mark(_self: Any, tokens: Sequence[Token], at: int, *_: Any) -> str:
    return f'<sup class="footnote-ref">{int(tokens[at].meta["id"]) + 1}</sup>'


def _render_fence(_self: Any, tokens: Sequence[Token], at: int, _options: Any, env: dict[str, Any]) -> str:
    token = tokens[at]
    language = (token.info.split() or [""])[0].lower()[:30]
    code = coloured(token.content, language) if env.get("finished", True) else html.escape(token.content)
    return f'<pre data-language="{html.escape(language)}"><code>{code}</code></pre>\n'


# --- code


_COLOURS = {
    "Comment": "c",
    "Keyword.Constant": "m",
    "Keyword.Type": "t",
    "Keyword": "k",
    "Literal.String": "s",
    "Literal.Number": "m",
    "Name.Function": "f",
    "Name.Class": "f",
    "Name.Builtin": "t",
    "Name.Decorator": "t",
    "Name.Tag": "k",
    "Name.Attribute": "t",
    "Operator.Word": "k",
    "Generic.Deleted": "d",
    "Generic.Inserted": "i",
    "Generic.Heading": "f",
}
LONGEST_COLOURED = 100_000
LONGEST_COLOURED_MARKDOWN = 20_000
"""Its lexer reads to the end of the text for each fence that is left open."""


@lru_cache(maxsize=512)
def coloured(code: str, language: str) -> str:
    """Code as HTML with a few short classes; as plain text where the language is unknown."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    if not language or len(code) > (LONGEST_COLOURED_MARKDOWN if language in _MARKDOWN else LONGEST_COLOURED):
        return html.escape(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return html.escape(code)
    pieces: list[str] = []
    last, run = "", ""
    for kind, value in lexer.get_tokens(code):
        name = _class_of(kind)
        if name != last and run and value.strip():
            pieces.append(_span(last, run))
            run = ""
        if value.strip() or not run:
            last = name if value.strip() else ""
        run += value
    pieces.append(_span(last, run))
    return "".join(pieces)


def _span(name: str, run: str) -> str:
    return f'<span class="{name}">{html.escape(run)}</span>' if name else html.escape(run)


@lru_cache(maxsize=256)
def _class_of(kind: Any) -> str:
    name = str(kind).removeprefix("Token.")
    while name:
        if name in _COLOURS:
            return _COLOURS[name]
        name = name.rpartition(".")[0]
    return ""
