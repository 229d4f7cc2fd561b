"""Formulas, tasks and addresses as models write them, as blocks of a message."""

from __future__ import annotations

import random
import re

import pytest

from modules.api.page.formulas import CLASSES, LONGEST_FORMULA, formula
from modules.api.page.markdown import render
from tests.shown import streamed


def html_of(text: str) -> str:
    return "\n".join(block.html for block in render(text))


def shape_of(source: str, *, display: bool = True) -> str:
    """A formula as its elements and what stands in them, without attributes and spaces."""
    bare = re.sub(r"<mspace[^>]*>", "", formula(source, display=display))
    return re.sub(r"[\u2009\u00a0]", " ", re.sub(r"<(/?\w+)[^>]*>", r"<\1>", bare))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (r"\arg z", "<mi>arg</mi>"),
        (r"\arg\min_{x} f", "<munder><mrow><mi>min</mi></mrow><mi>x</mi></munder>"),
        (r"\lim_{n} a_n", "<munder><mrow><mi>lim</mi></mrow><mi>n</mi></munder>"),
        (r"\max_x f", "<munder><mrow><mi>max</mi></mrow><mi>x</mi></munder>"),
        (r"\operatorname*{arg\,max}_x f", "<munder><mrow><mi>arg max</mi></mrow><mi>x</mi></munder>"),
        (r"\mathop{\mathrm{argmax}}\limits_x", "<munder><mrow><mi>argmax</mi></mrow><mi>x</mi></munder>"),
        (r"\int_0^1 x\,dx", "<msubsup><mo>∫</mo><mn>0</mn><mn>1</mn></msubsup>"),
        (
            r"\begin{pmatrix}a&b\\c&d\end{pmatrix}",
            "<mo>(</mo><mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr><mtr>",
        ),
        (r"\begin{aligned}a&=b\\&=c\end{aligned}", "<mtr><mtd></mtd><mtd><mo>=</mo><mi>c</mi></mtd></mtr>"),
        (r"\begin{align*}a&=b\\[4pt]c&=d\end{align*}", "<mtr><mtd><mi>c</mi></mtd><mtd><mo>=</mo><mi>d</mi></mtd></mtr>"),
        (r"\begin{split}a&=b\end{split}", "<mtable>"),
        (r"\begin{eqnarray}a&=&b\end{eqnarray}", "<mtd><mo>=</mo></mtd>"),
        (r"\begin{alignat}{2}a&=b\end{alignat}", "<mtable>"),
        (r"\begin{equation}\label{e}E=mc^2\tag{1}\end{equation}", "<mtext>(1)</mtext>"),
        (r"\sum_{\substack{i<n\\j<m}}", "<munder><mo>∑</mo><mfrac>"),
        (r"\text{for $x$ only}", "<mtext>for </mtext><mi>x</mi><mtext> only</mtext>"),
        (r"\mbox{so}", "<mtext>so</mtext>"),
        (r"\ce{2H2O}", "<msub><mrow><mi>H</mi></mrow><mn>2</mn></msub>"),
        (r"\vec{v}", "<mover><mi>v</mi><mo>→</mo></mover>"),
        (r"\left<x\right>", "<mo>⟨</mo><mi>x</mi><mo>⟩</mo>"),
        (r"\boxed{42}", "<mrow><mn>42</mn></mrow>"),
    ],
)
def test_a_formula_is_built_as_it_is_meant(source: str, expected: str):
    assert expected in shape_of(source)
    assert "merror" not in shape_of(source)


def test_in_a_line_the_limits_stand_beside_unless_they_move_themselves():
    assert "<msub><mrow><mi>lim</mi>" in shape_of(r"\lim_{n} a_n", display=False)


def test_how_a_formula_looks_is_said_by_classes_that_the_page_knows():
    text = r"$$\begin{cases}x&y\\&z\end{cases}\begin{array}{|r|l}\hline a&b\end{array}\boxed{\cancel{x}}\textcolor{red}{y}$$"
    shown = html_of(text)
    assert " style=" not in shown and 'mathcolor="#FF0000"' in shown
    used = {name for names in re.findall(r'<m\w+ [^>]*class="([^"]*)"', shown) for name in names.split()}
    assert {"left", "right", "apart", "line-left", "line-right", "line-top", "box", "updiagonalstrike"} <= used <= CLASSES


@pytest.mark.parametrize(
    "source", [r"\frac{1}{", "x_1_2", r"\begin{unheard}x\end{unheard}", r"\left( x", "x" * (LONGEST_FORMULA + 1)]
)
def test_what_is_no_formula_is_shown_as_it_was_written(source: str):
    assert formula(source, display=True) == f"<code>{source}</code>"


def test_an_unheard_command_takes_nothing_else_away():
    assert shape_of(r"\unheard + x") == r"<math><merror><mtext>\unheard</mtext></merror><mo>+</mo><mi>x</mi></math>"


@pytest.mark.parametrize(
    "source",
    ["{" * 2400 + "}" * 2400, r"\sqrt{" * 600 + "}" * 600, r"\left(" * 600 + r"\right)" * 600, r"\def\x{\x\x}\x", "'" * 4900],
)
def test_no_formula_ends_the_server(source: str):
    html_of(f"$${source}$$")


MIXTURE = re.findall(
    r"\S+",
    r"\frac \sqrt { } ^ _ & \\ \left( \right) \begin{aligned} \end{aligned} \text{ \sum \limits x 1 \tag{ $ \ce{ \substack{ ' < > é 中",
)


def test_any_mixture_of_commands_is_a_formula_or_its_source():
    rng = random.Random(7)
    for _ in range(3000):
        source = "".join(rng.choices(MIXTURE, k=rng.randint(1, 15)))
        assert re.match("<math|<code>", formula(source, display=rng.random() < 0.5)), source


@pytest.mark.parametrize("step", [1, 5])
def test_streamed_formulas_come_out_as_finished_ones(step: int):
    text = "So:\n\n$$\\lim_{x \\to 0} f(x)$$\n\n\\begin{align}\na &= b \\\\\n  &= c\n\\end{align}\n\n- [x] at https://example.org/a_b.\n\nEnd."
    assert "".join(block.html for block in streamed(text, step)) == "".join(block.html for block in render(text))


# --- plain addresses


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("See https://example.org/a_b_c?x=1#y.", ["https://example.org/a_b_c?x=1#y"]),
        ("(https://example.org/A_(b)), or www.example.org!", ["https://example.org/A_(b)", "https://www.example.org"]),
        ("见https://example.org即可，或https://example.org/x。", ["https://example.org", "https://example.org/x"]),
        ("http://127.0.0.1:7860/x and http://[::1]:80/a", ["http://127.0.0.1:7860/x", "http://[::1]:80/a"]),
        ("**https://example.org/x** ~~https://example.org~~", ["https://example.org/x", "https://example.org"]),
        ("| a |\n|---|\n| https://example.org |", ["https://example.org"]),
        (
            "https://example.org/%E6%BD%AE and https://example.org/wiki/潮汐",
            ["https://example.org/%E6%BD%AE", "https://example.org/wiki/%E6%BD%AE%E6%B1%90"],
        ),
        ("[https://a.org](https://b.org) <https://c.org>", ["https://b.org", "https://c.org"]),
        ("`https://example.org`\n\n```\nhttps://example.org\n```", []),
        ("http:// https://, www. www.x a@www.example.org javascript:alert(1) ftp://example.org", []),
    ],
)
def test_plain_addresses_are_links(text: str, addresses: list[str]):
    shown = html_of(text)
    assert re.findall(r'href="([^"]*)"', shown) == addresses
    assert shown.count('rel="noopener noreferrer nofollow"') == shown.count('target="_blank"') == len(addresses)


def test_addresses_cost_in_proportion_to_their_text():
    text = "www.a" * 20_000 + " https://" + "a." * 20_000 + " " + "(https://a.org" * 2000
    assert html_of(text)
