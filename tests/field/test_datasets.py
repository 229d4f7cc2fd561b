"""Data sets as people have them: broken rows cost themselves alone, missing values are nothing, and every form is read or named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modules.errors import UserError
from modules.training import encodings
from modules.training.config import TrainingConfig
from modules.training.dataset import Places, Prepared, prepare
from modules.training.encodings import NotUtf8
from modules.training.json_rows import SeveralLists
from modules.training.preview import count_all, figures, first_rows
from modules.training.rows import Rows, read_rows, to_convert
from modules.training.samples import load_tokenizer
from tests.field.mutations import damaged, how_many
from tests.in_process import ROOT

ROWS = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(1, 7)]
HALF = '{"question": "half", "answer": "\\ud800"}'
DEEP = '{"question": "deep", "answer": ' + "[" * 20_000 + "]" * 20_000 + "}"
TWICE = '{"question": "twice", "answer": "one", "answer": "two"}'
QUOTE = '{"question": "quo"te", "answer": "b"}'


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(tmp_path, ROOT / "training" / "formats", ROOT / "prompts" / "templates")


@pytest.fixture(scope="session")
def tokenizer(tiny_llama_folder) -> Any:
    return load_tokenizer(tiny_llama_folder)


def read(folder: Path, name: str, content: str | bytes) -> Rows:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(folder, name)


def numbers(rows: Rows) -> tuple[list[int], list[int]]:
    """(of the good rows, of the broken ones)."""
    return [number for number, _ in rows.rows], [problem.row for problem in rows.problems]


def learnt(prepared: Prepared, tokenizer: Any) -> list[str]:
    return [
        tokenizer.decode([token for token, is_learnt in zip(one.tokens, one.learnt, strict=True) if is_learnt])
        for one in prepared.samples
    ]


# --- broken rows


def json_list(rows: list[str]) -> str:
    return "[\n" + ",\n".join(rows) + "\n]"


def json_in_an_object(rows: list[str]) -> str:
    return '{"version": 1, "data": [' + ", ".join(rows) + "]}"


def json_lines(rows: list[str]) -> str:
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (HALF, "half of a surrogate pair"),
        (DEEP, "nested"),
        (TWICE, "answer stands in it twice"),
        (QUOTE, "not valid JSON"),
        ('"text"', "not a row of columns"),
        ('{"question": 1e999, "answer": ' + "9" * 5000 + "}", "4300"),
    ],
    ids=["half a surrogate pair", "brackets", "a name twice", "a quote", "no object", "many digits"],
)
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("d.jsonl", json_lines),
        ("d.json", json_list),
        ("d.json", json_in_an_object),
        ("d.json", json_lines),
        ("d.jsonl", json_list),
    ],
    ids=["lines", "list", "object", "lines in .json", "list in .jsonl"],
)
def test_a_broken_row_costs_itself_alone(tmp_path, name, written: Callable[[list[str]], str], broken, reason):
    rows = [json.dumps(row) for row in ROWS]
    found = read(tmp_path, name, written([*rows[:2], broken, *rows[2:4], broken, *rows[4:]]))
    assert numbers(found) == ([1, 2, 4, 5, 7, 8], [3, 6])
    assert [row for _, row in found.rows] == ROWS
    assert all(reason in problem.reason for problem in found.problems)


@pytest.mark.parametrize("written", [json_list, json_lines], ids=["list", "lines"])
def test_a_file_that_is_cut_off_gives_what_is_whole(tmp_path, written):
    whole = written([json.dumps(row) for row in ROWS])
    found = read(tmp_path, "d.json", whole[: whole.index('"q5"') + 2])
    assert numbers(found) == ([1, 2, 3, 4], [5])


def test_turns_of_a_broken_row_are_no_rows(tmp_path):
    row = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    found = read(tmp_path, "d.json", json_list([row, row.replace('"a"', '"a'), row]))
    assert numbers(found) == ([1, 3], [2])
    assert all(list(one) == ["messages"] for _, one in found.rows)


@pytest.mark.parametrize(
    "line", ['a,"b', 'a,"b"c', '"a,b', 'a,b,c,d', 'a,"b""'], ids=["open", "behind", "open first", "fields", "doubled"]
)  # fmt: skip
def test_a_wrong_quote_costs_one_line_of_a_table(tmp_path, line):
    found = read(tmp_path, "d.csv", f'question,answer\n1,"one"\n{line}\n3,three\n4,"fo\nur"\n5,five\n')
    assert numbers(found) == ([1, 3, 4, 5], [2])
    assert [row["question"] for _, row in found.rows] == ["1", "3", "4", "5"]
    assert found.problems[0].reason.startswith("line 3: ")


def test_bytes_that_are_no_text_cost_their_row(tmp_path):
    lines = "".join(f'{{"question": "q", "answer": "é{number}"}}\n' for number in range(5)).encode()
    found = read(tmp_path, "d.jsonl", lines.replace("é2".encode(), b"\xff2"))
    assert numbers(found) == ([1, 2, 4, 5], [3])
    assert "not UTF-8" in found.problems[0].reason


def test_a_broken_file_of_a_folder_leaves_the_others(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").write_bytes(b"PAR1 nonsense")
    read(tmp_path / "set", "b.json", json.dumps(ROWS))
    found = read_rows(tmp_path, "set")
    assert numbers(found) == ([2, 3, 4, 5, 6, 7], [1])
    assert "a.parquet is not a Parquet file" in found.problems[0].reason


def test_the_counts_say_what_the_run_takes(places, tokenizer):
    rows = [json.dumps(row) for row in [*ROWS, {"question": "x", "answer": " "}]]
    read(places.datasets, "d.jsonl", json_lines([rows[0], HALF, *rows[1:]]))
    prepared = prepare(TrainingConfig(dataset="d.jsonl"), places, tokenizer, "tiny")
    assert prepared.sentence.startswith("8 rows read, 6 good, 1 broken, 1 no answer; 6 sequences")
    assert [problem.row for problem in prepared.problems] == [2, 8]
    assert [one.row for one in prepared.samples] == [1, 3, 4, 5, 6, 7]


# --- missing values


MISSING = [None, "", float("nan"), "nan", "NaN", "None", "null", float("inf"), "Infinity", "<NA>"]


def with_missing(value: Any) -> dict[str, list[dict[str, Any]]]:
    """A good row and one with a missing answer, in every format."""
    return {
        "alpaca": [
            {"instruction": "a", "input": value, "output": "good", "system": value, "history": [["b", value]]},
            {"instruction": "a", "input": "", "output": value},
        ],
        "question-answer": [{"question": "a", "answer": "good"}, {"question": "a", "answer": value}],
        "sharegpt": [
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "good"}], "tools": value},
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": value}]},
        ],
        "messages": [
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "good"},
                          {"role": "user", "content": "b"}, {"role": "assistant", "content": value}]},
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": value}]},
        ],
        "preferences": [
            {"prompt": "a", "chosen": "good", "rejected": "bad"},
            {"prompt": "a", "chosen": value, "rejected": "bad"},
        ],
        "guanaco": [
            {"text": "### Human: a\n### Assistant: good"},
            {"text": f"### Human: a\n### Assistant: {'' if value is None else value}"},
        ],
        "alpaca-format": [
            {"instruction": "a", "input": value, "output": "good"}, {"instruction": "a", "input": "", "output": value},
        ],
        "text": [{"text": "good"}, {"text": value}],
    }  # fmt: skip


FORMATS = list(with_missing(None))


@pytest.mark.parametrize("form", FORMATS)
def test_a_missing_answer_is_no_answer_in_every_format(places, tokenizer, form):
    for value in MISSING:
        (places.datasets / "d.json").write_text(json.dumps(with_missing(value)[form]))
        prepared = prepare(TrainingConfig(dataset="d.json", format=form), places, tokenizer, "tiny")
        assert prepared.good == 1 and [problem.row for problem in prepared.problems] == [2], value
        assert prepared.problems[0].kind in ("no answer", "empty")
        words = "".join(tokenizer.decode(sample.tokens) for sample in prepared.samples)
        assert not any(word in words for word in ("nan", "NaN", "None", "null", "Inf", "inf", "NA")), (value, words)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_what_pandas_writes_for_missing_text_is_missing(places, tokenizer, suffix):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"question": ["a", "b", "c"], "answer": ["good", None, float("nan")]})
    path = places.datasets / f"d.{suffix}"
    match suffix:
        case "json":
            frame.to_json(path, orient="records")
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case "csv":
            frame.to_csv(path, index=False, na_rep="nan")
        case _:
            frame.to_parquet(path)
    prepared = prepare(TrainingConfig(dataset=path.name), places, tokenizer, "tiny")
    assert learnt(prepared, tokenizer) == ["good<|im_end|>"]
    assert [problem.row for problem in prepared.problems] == [2, 3]


# --- forms that people have


TOOLS = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_calls_of_tools_as_llama_factory_writes_them(places, tiny_llama_folder):
    knows_tools = load_tokenizer(tiny_llama_folder)
    knows_tools.chat_template = TOOLS
    tokenizer = knows_tools
    call = {"name": "clock", "arguments": {"zone": "UTC"}}
    turns = [("human", "Time?"), ("function_call", json.dumps(call)), ("observation", "12:00"), ("gpt", "Noon.")]
    row = {"conversations": [{"from": who, "value": said} for who, said in turns], "tools": "[]"}
    (places.datasets / "d.json").write_text(json.dumps([row]))
    prepared = prepare(TrainingConfig(dataset="d.json", template="model"), places, knows_tools, "tiny")
    text = tokenizer.decode(prepared.samples[0].tokens)
    assert '<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call>' in text and "12:00" in text
    assert "clock" in learnt(prepared, tokenizer)[0] and "12:00" not in learnt(prepared, tokenizer)[0]


def test_a_template_that_leaves_calls_out_is_told(places, tokenizer):
    turns = [
        ("human", "Time?"),
        ("function_call", '{"name": "clock", "arguments": {}}'),
        ("function_response", "12"),
        ("gpt", "Noon."),
    ]
    row = {"conversations": [{"from": who, "value": said} for who, said in turns]}
    (places.datasets / "d.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match="does not show the call of clock"):
        prepare(TrainingConfig(dataset="d.json", template="ChatML"), places, tokenizer, "tiny")


@pytest.mark.parametrize(
    ("asks", "answers"),
    [("Human", "GPT"), ("prompter", "assistant"), ("user", "model"), ("HUMAN", "Assistant"), ("User", "bot")],
)
def test_speakers_by_the_names_that_people_use(places, tokenizer, asks, answers):
    for column, who, said in (("conversations", "from", "value"), ("messages", "role", "content")):
        row = {column: [{who: asks, said: "a"}, {who: answers, said: "good"}]}
        (places.datasets / "d.json").write_text(json.dumps([row]))
        assert learnt(prepare(TrainingConfig(dataset="d.json"), places, tokenizer, "tiny"), tokenizer) == ["good<|im_end|>"]


def test_of_several_lists_one_is_chosen(tmp_path):
    content = {"about": ["text"], "train": ROWS[:4], "test": ROWS[4:]}
    with pytest.raises(SeveralLists, match=r"train \(4 rows\), test \(2 rows\)") as told:
        read(tmp_path, "d.json", json.dumps(content))
    assert told.value.lists == {"train": 4, "test": 2}
    assert [row for _, row in read_rows(tmp_path, "d.json:test").rows] == ROWS[4:]
    with pytest.raises(UserError, match=r"no list called dev\. It has: train, test"):
        read_rows(tmp_path, "d.json:dev")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.txt"])
def test_encodings_with_a_mark_are_read(tmp_path, encoding, name):
    rows = [{"question": "é", "answer": "中"}]
    text = {
        "d.json": json.dumps(rows, ensure_ascii=False),
        "d.jsonl": json.dumps(rows[0], ensure_ascii=False),
        "d.csv": "question,answer\né,中\n",
        "d.txt": "é中",
    }[name]
    (_, row), = read(tmp_path, name, text.encode(encoding)).rows  # fmt: skip
    assert row == ({"text": "é中"} if name == "d.txt" else rows[0])


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_line_separators_within_rows_end_no_line(tmp_path, name):
    rows = [{"question": "a\u2028b", "answer": "c\u2029\x85d"}] * 3
    found = read(tmp_path, name, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert [row for _, row in found.rows] == rows


def test_a_column_twice_is_told_and_nothing_is_lost(places, tokenizer):
    read(places.datasets, "d.csv", "question,answer,answer\na,good,other\n")
    rows = read_rows(places.datasets, "d.csv")
    assert [row for _, row in rows.rows] == [{"question": "a", "answer": "good", "answer.1": "other"}]
    sentence = prepare(TrainingConfig(dataset="d.csv"), places, tokenizer, "tiny").sentence
    assert "the column answer stands there again: it is read as answer.1" in sentence


TEXTS = {
    "gb18030": "question,answer\n什么是机器学习？,机器学习是人工智能的一个分支。\n",
    "big5": "question,answer\n什麼是機器學習？,機器學習是人工智慧的一個分支。\n",
    "cp1252": "question,answer\nWas ist schön?,Bücher für Mädchen\n",
    "utf-16-le": "question,answer\na,b\n",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_an_encoding_that_is_not_utf_8_is_named_and_converted(tmp_path, encoding):
    data = TEXTS[encoding].encode(encoding)
    with pytest.raises(NotUtf8, match=f"d.csv is not UTF-8 text. It is probably {encodings.NAMES[encoding]}: convert it"):
        read(tmp_path, "d.csv", data)
    assert to_convert(tmp_path, "d.csv") == "d.csv"
    encodings.convert(tmp_path / "d.csv")
    assert (tmp_path / "d.csv").read_text(encoding="utf-8") == TEXTS[encoding]
    assert (tmp_path / f"d.csv.{encoding}").read_bytes() == data, "nothing is lost"
    assert len(read_rows(tmp_path, "d.csv").rows) == 1
    with pytest.raises(UserError, match="nothing to convert"):
        encodings.convert(tmp_path / "d.csv")


def test_what_a_file_was_before_it_was_converted_stays_each_time(tmp_path):
    first, second = (f"问,答\n{word},好的，谢谢你的帮助\n".encode("gb18030") for word in ("你好世界大家", "再见世界大家"))
    for data in (first, second, first):
        (tmp_path / "d.csv").write_bytes(data)
        encodings.convert(tmp_path / "d.csv")
    assert (tmp_path / "d.csv.gb18030").read_bytes() == first and (tmp_path / "d.csv.gb18030-2").read_bytes() == second
    assert len(list(tmp_path.iterdir())) == 3


# --- how it is shown


@pytest.mark.slow
def test_the_beginning_is_shown_at_once_and_all_is_counted_elsewhere(places, tokenizer, tiny_llama_folder):
    rows = [{"question": f"q{number}", "answer": "a" if number % 100 else None} for number in range(500)]
    read(places.datasets, "d.json", json.dumps(rows))
    config = TrainingConfig(dataset="d.json")
    first = first_rows(config, places, tokenizer, "tiny")
    assert not first.complete and first.prepared is not None and first.prepared.rows == 200
    with count_all(config, places, tiny_llama_folder, "tiny") as counting:
        known = counting.wait(100)
    assert known == figures(prepare(config, places, tokenizer, "tiny"))
    assert known is not None and (known.rows, known.good, len(known.told)) == (500, 495, 5)


def test_the_process_that_counts_ends_with_the_server_however_that_ended():
    child = (
        "import signal, sys; signal.alarm(90); from modules.training.preview import end_with\n"
        "print('on', flush=True); end_with(int(sys.argv[1]))"
    )
    server = (
        "import os, signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # The child holds the pipe of stderr, too: it is at its end when that is closed.
    killed = subprocess.run([sys.executable, "-c", server], cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL and killed.stderr == b""


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "txt", "parquet"])
def test_of_a_long_row_no_more_is_made_ready_than_is_shown(places, tokenizer, suffix):
    row = {"question": "a", "answer": "word " * 1_000_000}
    path = places.datasets / f"d.{suffix}"
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    else:
        written = {"json": json.dumps([row]), "jsonl": json.dumps(row), "txt": row["answer"]}
        path.write_text(written.get(suffix, f"question,answer\na,{row['answer']}\n"))
    first = first_rows(TrainingConfig(dataset=path.name, cutoff=1024), places, tokenizer, "tiny")
    assert not first.complete and first.shortened == {1}
    assert first.prepared is not None and len(first.prepared.samples[0].tokens) == 1024
    made = sum(len(sample.tokens) + sample.cut for sample in first.prepared.samples)
    assert made < 100_000, "and not five million"


# --- damaged copies


def good_files() -> dict[str, bytes]:
    conversation = [{"from": "human", "value": "Grüße, 你好"}, {"from": "gpt", "value": "good"}]
    rows = json.dumps(ROWS, ensure_ascii=False)
    return {
        "d.json": rows.encode(),
        "lines.json": "\n".join(json.dumps(row) for row in ROWS).encode(),
        "d.jsonl": "\n".join(json.dumps({"conversations": conversation}, ensure_ascii=False) for _ in range(6)).encode(),
        "object.json": json.dumps({"train": ROWS, "version": 1}, indent=1).encode(),
        "d.csv": ("question,answer\n" + "".join(f'{row["question"]},"{row["answer"]}"\n' for row in ROWS)).encode(),
        "d.txt": "Ein Buch. 一本书。\n\n\nNoch eines.".encode(),
        "d.parquet": _parquet(),
    }


def _parquet() -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


@pytest.mark.parametrize("name", good_files())
def test_damaged_data_sets_are_read_as_far_as_they_are_good(places, tokenizer, name):
    """Every row is a good one, or counted with its reason; whatever is good is made ready, and nothing else raises."""
    for content in damaged(good_files()[name], how_many(20)):
        try:
            rows = read(places.datasets, name, content)
            told = {problem.row for problem in rows.problems}
            assert {number for number, _ in rows.rows}.isdisjoint(told)
            assert sorted([*told, *(number for number, _ in rows.rows)]) == list(range(1, len(rows.rows) + len(told) + 1))
            prepared = prepare(TrainingConfig(dataset=name), places, tokenizer, "tiny")
            assert prepared.rows == len(rows.rows) + len(told)
            assert {sample.row for sample in prepared.samples}.isdisjoint(told)
        except UserError as error:
            assert error.message


@pytest.mark.parametrize("name", ["d.json", "lines.json", "d.csv"])
def test_rows_that_were_not_touched_come_in(tmp_path, name):
    """One place damaged: of six rows at least four are as they were, whatever became of the others."""
    whole = good_files()[name]
    for number in range(min(how_many(60), 400)):
        at = 1 + (number * 7919) % (len(whole) - 2)  # the first bracket makes it a list
        content = whole[:at] + [b'"', b"\xff", b"{", b"\\", b"]", b""][number % 6] + whole[at + 1 :]
        if name != "d.csv" or at > len("question,answer\n"):
            rows = read(tmp_path, name, content)
            assert sum(row in ROWS for _, row in rows.rows) >= 4, content
