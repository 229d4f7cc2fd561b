"""What models write becomes HTML that shows it and runs nothing."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.api.page.markdown import LiveMarkdown, as_html, render
from modules.api.page.reply_stream import difference
from tests.shown import streamed


def html_of(text: str) -> str:
    return "\n".join(block.html for block in render(text))


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><a xlink:href='javascript:alert(1)'>x</a></svg>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "[click](vbscript:x)",
    "![x](javascript:alert(1))",
    '[x](http://a "onmouseover=alert(1) x=\\"")',
    "<a href='javascript:alert(1)'>x</a>",
    "<iframe src=javascript:alert(1)>",
    "<math><mtext></table><img src=x onerror=alert(1)>",
    "$\\text{<img src=x onerror=alert(1)>}$",
    "$\\href{javascript:alert(1)}{x}$",
    "$$<script>alert(1)</script>$$",
    "```html\n<script>alert(1)</script>\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "`<b onclick=alert(1)>`",
    "<details open ontoggle=alert(1)>",
    "<style>*{background:url(javascript:alert(1))}</style>",
    "<form><button formaction=javascript:alert(1)>x",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "| <img src=x onerror=alert(1)> |\n|---|\n| <script>x</script> |",
    "<think><script>alert(1)</script></think><img src=x onerror=alert(1)>",
    "[^1]\n\n[^1]: <script>alert(1)</script>",
    "<<script>script>alert(1)<</script>/script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
]
_TAG = re.compile(r"<([a-zA-Z][\w-]*)([^>]*)>")
_SAFE = re.compile(
    r"p|br|hr|h[1-6]|ul|ol|li|blockquote|pre|code|span|div|em|strong|s|del|a|table|thead|tbody|tr|th|td|sup|sub|section|input"
    r"|b|i|u|caption|mark|small|kbd|math|m(row|i|o|n|s|text|space|frac|sqrt|root|sup|sub|subsup|under|over|underover|table|tr|td|style|padded|phantom)"
)


def assert_harmless(html: str) -> None:
    for name, attributes in _TAG.findall(html):
        assert _SAFE.fullmatch(name.lower()), html
        bare = re.sub(r'"[^"]*"', '""', attributes)
        assert not re.search(r"\bon\w+\s*=|\bstyle\s*=|\bsrc\s*=|formaction|srcdoc", bare, re.IGNORECASE), html
    for address in re.findall(r'href="([^"]*)"', html):
        assert re.match(r"(https?:|mailto:|[^:]*$)", address, re.IGNORECASE), html


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_harmless_whole_and_at_every_moment_of_its_arrival(text: str):
    assert_harmless(html_of(text))
    live = LiveMarkdown()
    for end in range(1, len(text) + 1):
        assert_harmless("\n".join(block.html for block in live.update(text[:end])))


@settings(max_examples=150)
@given(st.lists(st.sampled_from([*HOSTILE, "\n\n", "- ", "> ", "`", "```", "$", "**", "<", ">", '"', "1. "]), max_size=6))
def test_hostile_texts_together_are_harmless(pieces: list[str]):
    assert_harmless(html_of("".join(pieces)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**bold** *soft* ~~gone~~ `code`", "<strong>bold</strong> <em>soft</em> <s>gone</s> <code>code</code>"),
        ("**标题：**内容", "<strong>标题：</strong>内容"),
        ("他说**“你好”**。", "<strong>“你好”</strong>"),
        ("| a |\n|--:|\n| 1<br>2 |", "1<br>"),
        ("| a | b |\n|--:|:-:|\n| 1 | 2 |", '<td align="right">1</td>\n<td align="center">2</td>'),
        ("- [x] done", 'type="checkbox"'),
        ("one\ntwo", "one<br>"),
        ("$x^2$ and \\(y\\)", "<msup>"),
        ("$n \\log n$", '<mi>log</mi></mrow><mo lspace="0.1667em">\u2061</mo><mi>n</mi>'),
        ("\\[\na\n- b\n\\]", '<math display="block">'),
        ("\\begin{align}a &= b\\end{align}", "<math"),
        ("it costs $5, or $10 each", "it costs $5, or $10 each"),
        ("[site](https://example.org)", 'rel="noopener noreferrer nofollow"'),
        ("![a cat](https://example.org/cat.png)", ">a cat</a>"),
        ("```python\ndef f(): return 1\n```", '<span class="k">def'),
        ("```unknown-language\n<x>\n```", "&lt;x&gt;"),
        ("text[^n]\n\n[^n]: the note", "the note"),
        ("$\\frac{1}{$", "<code>\\frac{1}{</code>"),
    ],
)
def test_what_models_write_looks_as_meant(text: str, expected: str):
    assert expected in html_of(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_html_is_harmless_where_html_is_shown(text: str):
    assert_harmless(as_html(text))


def test_html_of_a_model_keeps_its_form():
    page = "<h1>Tea</h1><p><b>Boil</b> <i>soft</i> <u>water</u>, <mark>then</mark> <kbd>wait</kbd>.</p><small>3 min</small>"
    assert as_html(page) == page
    table = "<table><caption>Kinds</caption><tbody><tr><td>Oolong</td></tr></tbody></table>"
    assert as_html(table) == table


def test_nothing_is_fetched_from_elsewhere():
    assert "<img" not in html_of("![](https://tracker.example/pixel.png) <img src='https://tracker.example/p.png'>")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("<think>\nhm\n</think>\n\nYes.", ["thinking", "text"]),
        ("<think>still", ["thinking"]),
        ("without a start\n</think>\n\nYes.", ["thinking", "text"]),
        ("[THINK]a[/THINK]b", ["thinking", "text"]),
        ("<think>\n\n</think>\n\nYes.", ["text"]),
        ("The tag <think> is a word here.", ["text"]),
        ("Yes.", ["text"]),
    ],
)
def test_thinking_is_told_from_speaking(text: str, kinds: list[str]):
    assert [block.kind for block in render(text)] == kinds


DOCUMENT = """# Title

A paragraph with **bold**, $x$ and 中文，**重要：**说明。 😀

1. one
2. two

   still two

```python
def f(x):
    return x
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

<think> is not thinking here.

- a
- b

The end.
"""


def test_growing_text_ends_as_the_whole_text_looks():
    live = LiveMarkdown()
    for end in range(1, len(DOCUMENT) + 1):
        live.update(DOCUMENT[:end])
    assert live.blocks == render(DOCUMENT)[:-1] + live.blocks[-1:]
    assert live.blocks[-1].html == render(DOCUMENT)[-1].html


@pytest.mark.parametrize("step", [1, 3, 17])
@pytest.mark.parametrize("text", [DOCUMENT, "<think>a\n\nb</think>\n\nc 😀😀 d", "thought\n\nmore</think>\n\nanswer"])
def test_the_differences_lead_a_browser_to_the_same_blocks(text: str, step: int):
    streamed(text, step)


def test_a_long_reply_costs_few_bytes_and_little_time():
    text = "".join(f"Paragraph {number} has some words, *some* of them soft.\n\n" for number in range(300))
    live, shown, sent, begun = LiveMarkdown(), [], 0, time.process_time()
    for end in range(16, len(text), 16):
        blocks = list(live.update(text[:end]))
        change = difference(shown, blocks)
        sent += len(str(change)) if change else 0
        shown = blocks
    assert sent < 4 * len(text)
    assert time.process_time() - begun < 5
