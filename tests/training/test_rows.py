"""Reading data sets: every kind of file, and rows that cannot be read."""

from __future__ import annotations

import json

import pytest

from modules.errors import NotFound, UserError
from modules.training.rows import list_datasets, read_rows

ROWS = [{"question": "a", "answer": "ä"}, {"question": "b", "answer": "c\nd"}]


def write_parquet(path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS = {
    "d.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "wrapped.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS}), encoding="utf-8"),
    "bom.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8-sig"),
    "lines.json": lambda path: path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8"),
    "d.jsonl": lambda path: path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n", encoding="utf-8"),
    "d.csv": lambda path: path.write_text('question,answer\na,ä\nb,"c\nd"\n', encoding="utf-8"),
    "semicolons.csv": lambda path: path.write_text('question;answer\na;ä\nb;"c\nd"\n', encoding="utf-8"),
    "d.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    rows = read_rows(tmp_path, name)
    assert [row for _, row in rows.rows] == ROWS
    assert rows.columns == ["question", "answer"]
    assert rows.problems == ()


def test_a_name_without_suffix_and_a_folder_of_files_work(tmp_path):
    (tmp_path / "set").mkdir()
    WRITERS["d.json"](tmp_path / "set" / "one.json")
    WRITERS["d.csv"](tmp_path / "set" / "two.csv")
    WRITERS["d.json"](tmp_path / "single.json")
    assert len(read_rows(tmp_path, "single").rows) == 2
    assert [number for number, _ in read_rows(tmp_path, "set").rows] == [1, 2, 3, 4]
    assert list_datasets(tmp_path) == ["set", "single.json"]


def test_a_folder_of_texts_gives_one_document_for_each_file(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "1.txt").write_text("one")
    (tmp_path / "book" / "2.txt").write_text("two")
    rows = read_rows(tmp_path, "book")
    assert rows.text and [row["text"] for _, row in rows.rows] == ["one", "two"]


def test_rows_that_cannot_be_read_are_told_with_their_number_and_the_rest_is_kept(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"a": 1}\n{oops\n[1, 2]\n{"a": 2}\n')
    rows = read_rows(tmp_path, "d.jsonl")
    assert [number for number, _ in rows.rows] == [1, 4]
    assert [(problem.row, problem.kind) for problem in rows.problems] == [(2, "broken"), (3, "broken")]
    assert "line 2 is not valid JSON" in rows.problems[0].reason


def test_a_line_of_a_table_with_too_many_fields_is_broken(tmp_path):
    (tmp_path / "d.csv").write_text("question,answer\na,b\nc,d,e\nf,g\n")
    rows = read_rows(tmp_path, "d.csv")
    assert [row["question"] for _, row in rows.rows] == ["a", "f"]
    assert rows.problems[0].reason == "line 3: it has 3 fields instead of 2"


def test_only_as_many_rows_as_asked_for_are_read(tmp_path):
    WRITERS["d.jsonl"](tmp_path / "d.jsonl")
    assert len(read_rows(tmp_path, "d.jsonl", limit=1).rows) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.json", b'{"data": [{"a": 1}], oops', "not valid JSON"),
        ("d.json", b'"text"', "must hold a list"),
        ("d.json", b'[{"a": "\xff"}]', "not UTF-8"),
        ("d.parquet", b"PAR1 nonsense", "not a Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_refused_with_the_reason(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_rows(tmp_path, name)


@pytest.mark.parametrize("name", ["nosuch", "../secret", "/etc/passwd", "."])
def test_only_data_sets_of_the_folder_can_be_read(tmp_path, name):
    (tmp_path.parent / "secret.json").write_text("[]")
    with pytest.raises(NotFound, match="There is no data set called"):
        read_rows(tmp_path, name)


def test_the_data_sets_that_come_with_the_program_all_fit_a_format():
    from pathlib import Path

    from modules.training.formats import guess_format

    root = Path(__file__).resolve().parent.parent.parent / "training"
    guessed = {}
    for name in list_datasets(root / "datasets"):
        rows = read_rows(root / "datasets", name)
        assert not rows.problems
        guessed[name] = "text" if rows.text else guess_format(root / "formats", rows.columns, rows.rows[0][1])
    for name, form in {
        "made-up-facts.json": "alpaca",
        "alpaca-sample.json": "alpaca",
        "conversations-sample.json": "sharegpt",
        "messages-sample.jsonl": "messages",
        "guanaco-sample.jsonl": "guanaco",
        "preferences-sample.jsonl": "preferences",
        "questions-sample.csv": "question-answer",
        "text-sample.txt": "text",
    }.items():
        assert guessed[name] == form
