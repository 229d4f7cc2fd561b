"""Which token is learnt, token by token: every format, every loss, every kind of template. ⟦…⟧ is what is learnt."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from modules.errors import UserError
from modules.library.templates import TemplateLibrary
from modules.training.config import TrainingConfig
from modules.training.dataset import Places, Prepared, prepare
from modules.training.formats import KeySetFormat, TextFormat, read_format
from modules.training.samples import Sample, load_tokenizer, readable

ROOT = Path(__file__).resolve().parent.parent.parent

ALPACA = [{"instruction": "Sum", "input": "1 2", "output": "3"}, {"instruction": "Hi", "input": "", "output": "Hé"}]
SHAREGPT = [{"conversations": [
    {"from": "human", "value": "a"}, {"from": "gpt", "value": "bb"}, {"from": "human", "value": "c"}, {"from": "gpt", "value": "dd"},
]}]  # fmt: skip
MESSAGES = [{"messages": [
    {"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "bb", "weight": 0},
    {"role": "user", "content": "c"}, {"role": "assistant", "content": "dd"},
]}]  # fmt: skip
GUANACO = [{"text": "### Human: a### Assistant: bb### Human: c### Assistant: dd"}]
PAIRS = [{"question": "a", "answer": "bb"}]
COMPLETION = [{"prompt": "a", "completion": "bb"}]
TEXT = [{"text": "one\ntwo"}]
PREFERENCES = [{"prompt": "a", "chosen": "bb", "rejected": "c"}]

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.\n"
)

CASES = [
    # Alpaca: the model's own template, the format's words, a named one, and the key-set file of July 2023.
    (ALPACA, "alpaca", "model", "answers", [
        "<|im_start|>user\nSum\n\n1 2<|im_end|>\n<|im_start|>assistant\n⟦3<|im_end|>⟧",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hé<|im_end|>⟧",
    ]),
    (ALPACA, "alpaca", "model", "all", [
        "⟦<|im_start|>user\nSum\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>⟧",
        "⟦<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHé<|im_end|>⟧",
    ]),
    (ALPACA, "alpaca", "model", "after:user\n", [
        "<|im_start|>user\n⟦Sum\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>⟧",
        "<|im_start|>user\n⟦Hi<|im_end|>\n<|im_start|>assistant\nHé<|im_end|>⟧",
    ]),
    (ALPACA[1:], "alpaca", "format", "answers", [f"<s>{PREAMBLE}### Instruction:\nHi\n\n### Response:\n⟦Hé<|im_end|>⟧"]),
    (ALPACA[1:], "alpaca", "format", "all", [f"⟦<s>{PREAMBLE}### Instruction:\nHi\n\n### Response:\nHé<|im_end|>⟧"]),
    (ALPACA[1:], "alpaca", "format", "after:### Response:\n", [
        f"<s>{PREAMBLE}### Instruction:\nHi\n\n### Response:\n⟦Hé<|im_end|>⟧",
    ]),
    (ALPACA[1:], "alpaca", "Llama-2", "answers", ["<s>[INST] Hi [/INST]⟦ Hé <|im_end|>⟧"]),
    (ALPACA, "alpaca-format", "auto", "answers", [
        f"{WITH_INPUT}### Instruction:\nSum\n\n### Input:\n1 2\n\n### Response:\n⟦3<|im_end|>⟧",
        f"{PREAMBLE}### Instruction:\nHi\n\n### Response:\n⟦Hé<|im_end|>⟧",
    ]),
    (ALPACA[1:], "alpaca-format", "auto", "all", [f"⟦{PREAMBLE}### Instruction:\nHi\n\n### Response:\nHé<|im_end|>⟧"]),
    (ALPACA, "alpaca-chatbot-format", "auto", "answers", [
        "User: Sum: 1 2\nAssistant: ⟦3<|im_end|>⟧", "User: Hi\nAssistant: ⟦Hé<|im_end|>⟧",
    ]),
    (ALPACA[1:], "alpaca-chatbot-format", "auto", "all", ["⟦User: Hi\nAssistant: Hé<|im_end|>⟧"]),
    (ALPACA[1:], "alpaca-chatbot-format", "auto", "after:Assistant:", ["User: Hi\nAssistant:⟦ Hé<|im_end|>⟧"]),
    (ALPACA[1:], "alpaca-format", "auto", "after:Response:\n", [f"{PREAMBLE}### Instruction:\nHi\n\n### Response:\n⟦Hé<|im_end|>⟧"]),
    (ALPACA[1:], "vicuna-format", "auto", "answers", ["USER: Hi\nASSISTANT: ⟦Hé<|im_end|>⟧"]),
    (ALPACA[1:], "vicuna-format", "auto", "all", ["⟦USER: Hi\nASSISTANT: Hé<|im_end|>⟧"]),
    (ALPACA[1:], "vicuna-format", "auto", "after:ASSISTANT:", ["USER: Hi\nASSISTANT:⟦ Hé<|im_end|>⟧"]),
    # Several turns: every answer is learnt, no question is.
    (SHAREGPT, "sharegpt", "model", "answers", [
        ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦bb<|im_end|>⟧\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦dd<|im_end|>⟧"),
    ]),
    (SHAREGPT, "sharegpt", "model", "all", [
        ("⟦<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nbb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\ndd<|im_end|>⟧"),
    ]),
    (SHAREGPT, "sharegpt", "model", "after:bb", [
        ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nbb⟦<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\ndd<|im_end|>⟧"),
    ]),
    (SHAREGPT, "sharegpt", "format", "answers", [f"<s>{VICUNA}USER: a ASSISTANT:⟦ bb<|im_end|>⟧USER: c ASSISTANT:⟦ dd<|im_end|>⟧"]),
    (SHAREGPT, "sharegpt", "Llama-2", "answers", [
        "<s>[INST] a [/INST]⟦ bb <|im_end|>⟧<s>[INST] c [/INST]⟦ dd <|im_end|>⟧",
    ]),
    # OpenAI's messages: weight 0 is shown, not learnt.
    (MESSAGES, "messages", "model", "answers", [
        ("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nbb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦dd<|im_end|>⟧"),
    ]),
    (MESSAGES, "messages", "model", "all", [
        ("⟦<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nbb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\ndd<|im_end|>⟧"),
    ]),
    (MESSAGES, "messages", "Vicuna-v1.1", "answers", ["<s>s USER: a ASSISTANT: bb<|im_end|>USER: c ASSISTANT:⟦ dd<|im_end|>⟧"]),
    # Guanaco: its own words have no end of turn, so each answer gets one; that of an earlier one is learnt and not read.
    (GUANACO, "guanaco", "format", "answers", [
        f"<s>{HUMAN}### Human: a\n### Assistant:⟦ bb<|im_end|>⟧\n### Human: c\n### Assistant:⟦ dd<|im_end|>⟧",
    ]),
    (GUANACO, "guanaco", "format", "all", [
        f"⟦<s>{HUMAN}### Human: a\n### Assistant: bb\n### Human: c\n### Assistant: dd<|im_end|>⟧",
    ]),
    (GUANACO, "guanaco", "model", "answers", [
        ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦bb<|im_end|>⟧\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦dd<|im_end|>⟧"),
    ]),
    (PAIRS, "question-answer", "model", "answers", ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦bb<|im_end|>⟧"]),
    (PAIRS, "question-answer", "model", "all", ["⟦<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nbb<|im_end|>⟧"]),
    (COMPLETION, "prompt-completion", "model", "answers", [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦bb<|im_end|>⟧",
    ]),
    (COMPLETION, "prompt-completion", "ChatML", "after:a<", [
        "<|im_start|>user\na<⟦|im_end|>\n<|im_start|>assistant\nbb<|im_end|>⟧",
    ]),
    (PREFERENCES, "preferences", "model", "answers", ["<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦bb<|im_end|>⟧"]),
    (TEXT, "text", "auto", "all", ["⟦one\ntwo<|im_end|>⟧"]),
    (TEXT, "text", "auto", "answers", ["⟦one\ntwo<|im_end|>⟧"]),
]  # fmt: skip


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(tmp_path, ROOT / "training" / "formats", ROOT / "prompts" / "templates")


@pytest.fixture(scope="session")
def bytewise(tiny_llama_folder):
    return load_tokenizer(tiny_llama_folder)


def prepared(places: Places, tokenizer, rows, **settings) -> Prepared:
    (places.datasets / "d.json").write_text(json.dumps(rows), encoding="utf-8")
    return prepare(TrainingConfig.read({"dataset": "d.json", **settings}), places, tokenizer, "tiny-llama")


def read(sample: Sample) -> list[int]:
    """The tokens that the model reads."""
    return [token for at, token in enumerate(sample.tokens) if at not in sample.unread]


def marked(tokenizer, data: Prepared) -> list[str]:
    return ["".join(f"⟦{text}⟧" if learnt else text for text, learnt in readable(tokenizer, one)) for one in data.samples]


@pytest.mark.parametrize(("rows", "form", "template", "loss", "wanted"), CASES)
def test_exactly_what_should_be_learnt_is(places, bytewise, rows, form, template, loss, wanted):
    kind, _, marker = loss.partition(":")
    if "a<" in marker:
        # The marker ends within <|im_end|>, which is one token: all of it is learnt.
        wanted = [wanted[0].replace("<⟦|im_end|>", "⟦<|im_end|>")]
    data = prepared(places, bytewise, rows, format=form, template=template, loss=kind, loss_after=marker)
    assert marked(bytewise, data) == wanted
    assert data.problems == ()


# Words that no template has, so that what is learnt can be told apart without knowing the template.
SAID = {
    "alpaca": ([{"instruction": "Xask1", "input": "Xmore1", "output": "Yans1"}], ["Yans1"]),
    "sharegpt": (
        [{"conversations": [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(["Xask1", "Yans1", "Xask2", "Yans2"])]}],
        ["Yans1", "Yans2"],
    ),
    "messages": (
        [{"messages": [
            *({"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(["Xask1", "Yans1", "Xask2"])),
            {"role": "assistant", "content": "Xskipped", "weight": 0}, {"role": "user", "content": "Xask3"},
            {"role": "assistant", "content": "Yans3"},
        ]}],
        ["Yans1", "Yans3"],
    ),
    "guanaco": ([{"text": "### Human: Xask1### Assistant: Yans1### Human: Xask2### Assistant: Yans2"}], ["Yans1", "Yans2"]),
    "prompt-completion": ([{"prompt": "Xask1", "completion": "Yans1"}], ["Yans1"]),
    "question-answer": ([{"question": "Xask1", "answer": "Yans1"}], ["Yans1"]),
    "preferences": ([{"prompt": "Xask1", "chosen": "Yans1", "rejected": "Xother"}], ["Yans1"]),
}  # fmt: skip
TEMPLATES = ["model", "format", *TemplateLibrary(ROOT / "prompts" / "templates").names()]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("form", SAID)
def test_every_format_in_every_template_learns_what_each_loss_says(places, bytewise, form, template):
    """Byte by byte, a byte being a token here: answers with nothing but end tokens behind them, everything, or what follows a marker."""
    rows, answers = SAID[form]
    if template == "format" and not read_format(places.formats, form).template:
        with pytest.raises(UserError, match="no words of its own"):
            prepared(places, bytewise, rows, format=form, template=template)
        return
    data = prepared(places, bytewise, rows, format=form, template=template)
    [text] = marked(bytewise, data)
    learnt = re.findall("⟦(.*?)⟧", text, re.DOTALL)
    assert [part.strip()[:5] for part in learnt] == answers
    assert all(re.fullmatch(r"\s*Yans\d\s*(<[^<>]+>\s*){1,2}", part) for part in learnt), learnt
    assert learnt[-1].endswith(bytewise.eos_token) and text.endswith("⟧")
    plain = bytewise.decode(read(data.samples[0]))
    [everything] = marked(bytewise, prepared(places, bytewise, rows, format=form, template=template, loss="all"))
    assert everything == f"⟦{plain}⟧"
    [after] = marked(
        bytewise, prepared(places, bytewise, rows, format=form, template=template, loss="after", loss_after="ask1")
    )
    before, _, behind = plain.partition("ask1")
    assert after == f"{before}ask1⟦{behind}⟧"


def test_every_format_that_is_shipped_has_label_tests_with_every_loss():
    shipped = {path.stem for path in (ROOT / "training" / "formats").glob("*.[yj][as][mo]*")}
    fixed = {
        name for name in shipped if isinstance(read_format(ROOT / "training" / "formats", name), KeySetFormat | TextFormat)
    }
    assert set(SAID) == shipped - fixed
    cases = {(case[1], case[3].partition(":")[0]) for case in CASES}
    assert {(name, loss) for name in fixed for loss in ("answers", "all", "after")} - {("text", "after")} <= cases
    assert {name for name, _ in cases} == shipped


def test_without_an_added_end_token_the_template_alone_decides(places, bytewise):
    with_end = prepared(places, bytewise, GUANACO, template="format", add_eos=True)
    without = prepared(places, bytewise, GUANACO, template="format", add_eos=False)
    assert read(with_end.samples[0])[:-1] == list(without.samples[0].tokens)
    assert marked(bytewise, without)[0].endswith("⟦ dd⟧")


def test_a_template_that_hides_earlier_reasoning_gives_one_sequence_for_each_answer(places, bytewise):
    """As Qwen3 and DeepSeek-R1 do: what stands in <think> is shown for the last answer alone."""
    source = (
        "{%- for m in messages -%}<|im_start|>{{ m.role }}\n"
        "{%- if m.role == 'assistant' and not loop.last -%}{{ m.content.split('</think>')[-1] }}"
        "{%- else -%}{{ m.content }}{%- endif -%}<|im_end|>{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
    )
    library = places.datasets / "templates"
    library.mkdir()
    (library / "hiding.jinja").write_text(source, encoding="utf-8")
    rows = [{"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>x</think>b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "<think>y</think>d"},
    ]}]  # fmt: skip
    data = prepared(Places(places.datasets, places.formats, library), bytewise, rows, template="hiding")
    assert [text.replace("\n", "") for text in marked(bytewise, data)] == [
        "<|im_start|>usera<|im_end|><|im_start|>assistant⟦<think>x</think>b<|im_end|>⟧",
        (
            "<|im_start|>usera<|im_end|><|im_start|>assistantb<|im_end|><|im_start|>userc<|im_end|>"
            "<|im_start|>assistant⟦<think>y</think>d<|im_end|>⟧"
        ),
    ]


def test_tokens_of_several_characters_are_learnt_where_any_of_them_is(places, starter_folder):
    tokenizer = load_tokenizer(starter_folder)
    data = prepared(places, tokenizer, ALPACA, format="alpaca-chatbot-format")
    assert marked(tokenizer, data) == [
        "User: Sum: 1 2\nAssistant: ⟦3<|im_end|>⟧",
        "User: Hi\nAssistant:⟦ Hé<|im_end|>⟧",
    ]


def test_the_training_text_is_the_prompt_that_chat_will_make(places, bytewise):
    """What stands before a learnt answer is, token for token, the prompt that the engine makes for it."""
    from modules.generation.local.prompt import PromptBuilder
    from modules.generation.types import GenerationRequest, Message

    data = prepared(places, bytewise, SHAREGPT, template="model")
    asked = (Message("user", "a"), Message("assistant", "bb"), Message("user", "c"))
    prompt = PromptBuilder(bytewise, bytewise.chat_template, 4096).prompt(GenerationRequest(asked)).tokens
    sample = data.samples[0]
    assert list(sample.tokens[: len(prompt)]) == prompt
    assert sample.learnt[len(prompt)] and not sample.learnt[len(prompt) - 1]


# --- what is wrong with rows is told


def test_every_row_that_is_left_out_or_cut_is_accounted_for(places, bytewise):
    rows = [
        {"question": "a", "answer": "bb"},
        {"question": "a", "answer": ""},
        {"question": "", "answer": "b"},
        {"question": "a", "answer": ["b"]},
        {"question": "a", "answer": "b" * 100},
        {"question": "a" * 200, "answer": "b"},
    ]
    data = prepared(places, bytewise, rows, cutoff=60)
    assert [(problem.row, problem.kind) for problem in data.problems] == [
        (2, "no answer"), (3, "empty"), (4, "broken"), (5, "too long (cut)"), (6, "too long (left out)"),
    ]  # fmt: skip
    assert [sample.row for sample in data.samples] == [1, 5]
    assert "2 sequences" in data.sentence and "1 too long (cut)" in data.sentence
    assert [one.row for one in prepared(places, bytewise, rows, cutoff=60, long_rows="skip").samples] == [1]


def test_a_cut_answer_has_no_end_token(places, bytewise):
    data = prepared(places, bytewise, [{"question": "a", "answer": "b" * 100}], cutoff=60)
    assert len(data.samples[0].tokens) == 60
    assert data.samples[0].tokens[-1] != bytewise.eos_token_id


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([{"question": "a", "answer": "b" * 9}], {"cutoff": 20}, "Raise the cutoff"),
        ([{"question": "a", "answer": ""}], {}, "1 no answer"),
        ([{"question": "a", "answer": "b"}], {"loss": "after", "loss_after": "xyz"}, "marker 'xyz' is not in it"),
        ([{"question": "a", "answer": "b"}], {"loss": "after"}, "needs the marker"),
        ([{"question": "a", "answer": "b"}], {"format": "alpaca"}, "needs the column instruction, output"),
        ([{"question": "a", "answer": "b"}], {"format": "nosuch"}, "There is no format called nosuch"),
        ([{"question": "a", "answer": "b"}], {"template": "nosuch"}, "There is no chat template called nosuch"),
        ([{"colour": "red"}], {}, "No format fits the columns colour"),
        ([], {}, "has no rows"),
        (ALPACA, {"format": "alpaca-format", "template": "ChatML"}, "brings its own words"),
        (TEXT, {"format": "text", "loss": "after", "loss_after": "one"}, "Plain text is learnt as it is"),
    ],
)
def test_data_of_which_nothing_can_be_learnt_is_refused_with_the_reason(places, bytewise, rows, settings, words):
    with pytest.raises(UserError, match=words):
        prepared(places, bytewise, rows, **settings)


# --- plain text


def texts(tokenizer, data: Prepared) -> list[str]:
    return [tokenizer.decode(sample.tokens) for sample in data.samples]


def test_plain_text_is_cut_with_overlap(places, bytewise):
    rows = [{"text": "abcdefghijklmnopqrst"}]
    data = prepared(places, bytewise, rows, format="text", cutoff=8, overlap=3, newline_favor=0, add_eos=False)
    assert texts(bytewise, data) == ["abcdefgh", "fghijklm", "klmnopqr", "pqrst"]


def test_a_piece_of_text_ends_at_a_line_break_where_one_is_near(places, bytewise):
    rows = [{"text": "abcdef\nghi\njklmnop"}]
    data = prepared(places, bytewise, rows, format="text", cutoff=12, overlap=0, newline_favor=4, add_eos=False)
    assert texts(bytewise, data) == ["abcdef\nghi\n", "jklmnop"]
    data = prepared(places, bytewise, rows, format="text", cutoff=10, overlap=0, newline_favor=2, add_eos=False)
    assert texts(bytewise, data) == ["abcdef\nghi", "\njklmnop"]


def test_no_piece_of_text_reaches_over_the_hard_cut_and_short_documents_are_counted(places, bytewise):
    rows = [{"text": "first document\n\n\nno\n\n\nsecond document"}]
    data = prepared(places, bytewise, rows, format="text", cutoff=64, min_chars=5)
    assert texts(bytewise, data) == ["first document<|im_end|>", "second document<|im_end|>"]
    assert [problem.kind for problem in data.problems] == ["too short"]
