"""Tests of the rows of json, jsonl and csv files."""

from __future__ import annotations

import csv
import json
import pickle
import tracemalloc
from pathlib import Path

import pytest

from mllm.dataset.tables import json_files
from mllm.dataset.tables.records import Records
from mllm.errors import DataError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines_by_python(path: Path) -> list[tuple[int, dict]]:
    """Return line numbers and rows of a jsonl file by a loop over its lines."""
    text = path.read_bytes().decode("utf-8-sig")
    return [(n, json.loads(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}\n{"a": 2}\n',
        '{"a": 1}\n{"a": 2}',
        '{"a": 1}\r\n{"a": "ü"}\r\n',
        '\ufeff{"a": 1}\n{"a": 2}\n',
        '\n\n{"a": 1}\n\r\n  \t \n {"a": 2}\n\n',
        '\ufeff\n{"a": 1}\n',
        '{"a": "' + "x" * 40 + '"}\n\n{"a": 2}',
    ],
)
@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 22])
def test_jsonl_rows_and_lines_match_a_plain_loop(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr(json_files, "_CHUNK", chunk)
    path = write(tmp_path / "rows.jsonl", text)
    rows = Records(path)
    expected = lines_by_python(path)
    assert [rows[i] for i in range(len(rows))] == [row for _, row in expected]
    assert [rows.describe(i) for i in range(len(rows))] == [f"{path}, line {n}" for n, _ in expected]


def test_the_index_of_a_million_rows_is_small(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = '{"image": "%07d.png", "question": "Which modality is this?", "answer": "CT"}\n'
    with path.open("w") as file:
        for start in range(0, 1_000_000, 10_000):
            file.write("".join(line % i for i in range(start, start + 10_000)))
    tracemalloc.start()
    rows = Records(path)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 1_000_000
    assert size < 20e6
    assert peak < 60e6
    assert rows[987_654]["image"] == "0987654.png"
    assert rows.describe(987_654) == f"{path}, line 987655"


def test_a_pickled_copy_reads_the_same_rows(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    rows = Records(path)
    copy = pickle.loads(pickle.dumps(rows))
    assert [copy[0], copy[1]] == [{"a": 1}, {"a": 2}]
    assert copy.describe(1) == rows.describe(1)


def test_an_object_of_ids_and_objects_has_rows_with_lines(tmp_path):
    text = '\n{"1": {"a": "{"},\n\n "x:{" : {"b": {}}, "3":\n{"c": "}"}\n}'
    path = write(tmp_path / "rows.json", text)
    rows = Records(path)
    assert [rows[i] for i in range(len(rows))] == list(json.loads(text).values())
    lines = [f"{path}, line 2", f"{path}, line 4 (row 2)", f"{path}, line 4 (row 3)"]
    assert [rows.describe(i) for i in range(len(rows))] == lines


@pytest.mark.parametrize("wrapped", [False, True])
def test_every_row_of_a_json_list_has_its_line(tmp_path, wrapped):
    items = '[\n  {"a": [1, 2]},\n  {\n    "a": 2\n  },\n\n  {"a": "]"}\n]'
    text = f'{{"note": {{"data": [1]}},\n"data": {items}}}' if wrapped else items
    path = write(tmp_path / "rows.json", text)
    rows = Records(path)
    assert [rows[i]["a"] for i in range(3)] == [[1, 2], 2, "]"]
    assert [rows.describe(i) for i in range(3)] == [f"{path}, line {n + wrapped}" for n in (2, 3, 7)]


def test_rows_on_the_same_line_have_their_number(tmp_path):
    path = write(tmp_path / "rows.json", json.dumps([{"a": 1}, {"a": 2}]))
    assert Records(path).describe(1) == f"{path}, line 1 (row 2)"


def test_csv_matches_the_csv_module(tmp_path):
    path = tmp_path / "rows.csv"
    written = [{"image": "a.png", "text": 'two\nlines, "quoted"'}, {"image": "b.png", "text": "ü"}]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["image", "text"])
        writer.writeheader()
        writer.writerows(written)
    rows = Records(path)
    assert [rows[i] for i in range(2)] == written
    assert [rows.describe(i) for i in range(2)] == [f"{path}, line 2", f"{path}, line 4"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "rows.jsonl",
            '{"a": 1}\n\n{"a": \n',
            r"rows\.jsonl, line 3: not valid JSON \(Expecting value at column \d+\)$",
        ),
        ("rows.jsonl", '{"a": 1}\n[1]\n', r"rows\.jsonl, line 2: a row must be an object \{\.\.\.\}, not a list$"),
        ("rows.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"rows\.jsonl, line 2: not UTF-8 text"),
        ("rows.jsonl", "", r"rows\.jsonl is empty$"),
        ("rows.jsonl", "\n \n\r\n", r"rows\.jsonl is empty$"),
        ("rows.json", "", r"rows\.json is empty$"),
        ("rows.json", "[]", r"rows\.json is empty$"),
        ("rows.json", '[\n{"a": 1},\n{"a" 2}]', r"rows\.json, line 3: not valid JSON \(Expecting ':' delimiter\)$"),
        (
            "rows.json",
            '{"rows": []}',
            r'rows\.json must be a list of objects, \{"data": \[\.\.\.\]\}, or an object of ids',
        ),
        (
            "rows.json",
            '{"1": {"a": 1}, "1": {"a": 2}}',
            "rows.json: an object has a duplicate key, or two rows have the same id",
        ),
        ("rows.json", b'[{"a": "\xff"}]', r"rows\.json is not UTF-8 text"),
        ("rows.csv", "", r"rows\.csv is empty$"),
        ("rows.csv", "a,b\n", r"rows\.csv has a first line and no rows$"),
        ("rows.csv", "a,b\n1,2\n\n1,2,3\n", r"rows\.csv, line 4: 3 values for 2 columns$"),
        ("rows.csv", "a,a\n1,2\n", r"rows\.csv, line 1: duplicate column 'a'$"),
        ("rows.csv", 'a,b\n1,2\n"x" y,2\n', r"rows\.csv, line 3: not valid CSV"),
        ("rows.txt", "a", r"data_path .*rows\.txt must end in \.json, \.jsonl, \.csv, \.tsv or \.parquet$"),
    ],
)
def test_the_message_about_a_malformed_file(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(DataError, match=message):
        rows = Records(path)
        for i in range(len(rows)):
            rows[i]


def test_the_message_about_a_missing_file_has_the_nearest_name(tmp_path):
    write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(DataError, match=r"^data_path .*trian\.jsonl does not exist: did you mean '.*/train\.jsonl'\?$"):
        Records(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"does not exist \(nor does its folder .*\)$"):
        Records(tmp_path / "none" / "train.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        Records(tmp_path)


def test_an_index_out_of_range_is_an_index_error(tmp_path):
    rows = Records(write(tmp_path / "rows.jsonl", '{"a": 1}\n{"a": 2}\n'))
    assert rows[-1] == {"a": 2}
    with pytest.raises(IndexError):
        rows[2]


def test_rows_of_a_table_in_memory_are_equal_in_any_order(tmp_path):
    datasets = pytest.importorskip("datasets")
    expected = [{"number": number, "words": [str(number)] * (number % 3)} for number in range(600)]
    datasets.Dataset.from_list(expected).to_parquet(str(tmp_path / "rows.parquet"))
    rows = Records(tmp_path / "rows.parquet")
    order = [*range(300), 599, 3, 4, 5, *range(255, 258), 0, -1]
    assert [rows[number] for number in order] == [expected[number] for number in order]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet"])
def test_a_row_that_is_read_again_has_no_changes_of_its_reader(tmp_path, name):
    row = {"words": ["one"], "boxes": [[1, 2]]} if name != "rows.csv" else {"words": "one"}
    if name == "rows.parquet":
        pytest.importorskip("datasets").Dataset.from_list([row] * 3).to_parquet(str(tmp_path / name))
    else:
        texts = {
            "rows.json": json.dumps([row] * 3),
            "rows.jsonl": f"{json.dumps(row)}\n" * 3,
            "rows.csv": "words\none\n",
        }
        write(tmp_path / name, texts[name])
    records = Records(tmp_path / name)
    for _ in range(2):
        assert records[0] == row
        changed = records[0]
        for value in changed.values():
            if isinstance(value, list):
                value.append("changed")
        changed.clear()
