"""Tests of tables in the dialects of pandas, Excel and published datasets, against pandas and the csv module."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from mllm.dataset.single_image_dataset.translation import TranslationDataset
from mllm.dataset.tables.records import Records
from mllm.errors import DataError

ROWS = [
    {"image": "a.png", "question": 'What is "this"?', "answer": "yes, it is"},
    {"image": "b.png", "question": "two\nlines", "answer": "a\ttab; é"},
    {"image": "c.png", "question": "plain", "answer": '"quoted"'},
]


def rows_of(path: Path) -> list[dict]:
    records = Records(path)
    return [records[i] for i in range(len(records))]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize(
    ("name", "delimiter"), [("rows.tsv", "\t"), ("rows.csv", ","), ("rows.csv", ";"), ("rows.csv", "|")]
)
def test_tables_of_pandas_are_read_as_they_were_written(tmp_path, name, delimiter, quoting):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / name
    pandas.DataFrame(ROWS).to_csv(path, sep=delimiter, index=False, quoting=quoting)
    assert rows_of(path) == ROWS
    assert Records(path).describe(2) == f"{path}, line 5"


def test_quotation_marks_within_texts_are_kept_in_a_file_with_tabs(tmp_path):
    rows = [('"Hi," he said', "a"), ("She said", '"Hi'), ("there", 'and "more" of it"'), ('5" tube', "b")]
    path = write(tmp_path / "rows.tsv", "question\tanswer\n" + "".join(f"{q}\t{a}\n" for q, a in rows))
    assert [tuple(row.values()) for row in rows_of(path)] == rows


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.json", "rows.jsonl"])
def test_files_with_a_byte_order_mark_are_read(tmp_path, name, encoding):
    rows = [{"question": "é?", "answer": "ü"}, {"question": "日", "answer": "本"}]
    delimiter = "\t" if name.endswith("tsv") else ","
    texts = {"json": json.dumps(rows, ensure_ascii=False)}
    texts["jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    table = delimiter.join(rows[0]) + "\r\n" + "".join(delimiter.join(row.values()) + "\r\n" for row in rows)
    mark = "\ufeff" if encoding.endswith("e") else ""  # the other encodings of Python write the mark themselves
    path = write(tmp_path / name, mark + texts.get(name.partition(".")[2], table), encoding)
    assert rows_of(path) == rows
    assert (
        Records(path)
        .describe(1)
        .startswith(f"{path}, line {1 if name == 'rows.json' else 2 if 'jsonl' in name else 3}")
    )


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.jsonl.gz", "rows.json.gz", "rows.csv", "rows.jsonl"])
def test_compressed_files_are_read(tmp_path, name):
    text = "a,b\n1,2\n" if "csv" in name else '[{"a": "1", "b": "2"}]' if ".json." in name else '{"a": "1", "b": "2"}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()))
    assert rows_of(path) == [{"a": "1", "b": "2"}]
    path.write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(DataError, match="is a damaged gzip file"):
        Records(path)


def test_the_header_of_the_boxes_of_nih_has_empty_columns(tmp_path):
    # The first lines of BBox_List_2017.csv of ChestX-ray14.
    text = (
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00013118_008.png,Atelectasis,225.084745762712,547.019216763771,86.7796610169491,79.1864406779661,,,\n"
    )
    assert rows_of(write(tmp_path / "BBox_List_2017.csv", text)) == [
        {
            "Image Index": "00013118_008.png",
            "Finding Label": "Atelectasis",
            "Bbox [x": "225.084745762712",
            "y": "547.019216763771",
            "w": "86.7796610169491",
            "h]": "79.1864406779661",
        }
    ]


def test_columns_without_a_name_are_named_as_by_pandas_if_they_have_values(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = write(tmp_path / "rows.csv", ",image,,note\n0,a.png,,x\n1,b.png,,y\n")
    expected = pandas.read_csv(path, dtype=str).dropna(axis="columns").to_dict("records")
    assert rows_of(path) == expected
    assert list(expected[0]) == ["Unnamed: 0", "image", "note"]


def test_empty_values_behind_the_last_column_are_ignored(tmp_path):
    assert rows_of(write(tmp_path / "rows.csv", "a,b\n1,2,\n3,4\n")) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    with pytest.raises(DataError, match="line 2: 3 values for 2 columns"):
        rows_of(write(tmp_path / "rows.csv", "a,b\n1,2,3\n"))
    # Line 2 of a test file of MTNT ends in a tab.
    path = write(tmp_path / "test.fr-en.tsv", '0\tNon.\tNo.\n1\tOui "oui".\t"Yes" yes.\t\n')
    data = TranslationDataset(path)
    assert [turn.text for turn in data.sample(1).turns] == ['Oui "oui".', '"Yes" yes.']


def test_the_first_line_of_excel_names_the_delimiter(tmp_path):
    path = write(tmp_path / "rows.csv", 'sep=;\r\na,b;c\r\n"1;2";3\r\n')
    assert rows_of(path) == [{"a,b": "1;2", "c": "3"}]
    assert Records(path).describe(0) == f"{path}, line 3"


def test_spaces_after_the_delimiters_of_the_header_are_no_part_of_the_values(tmp_path):
    path = write(tmp_path / "a.csv", 'image, question, answer\n0.png, where?, "left, lower"\n1.png, who?, "no"\n')
    expected = [("0.png", "where?", "left, lower"), ("1.png", "who?", "no")]
    assert [tuple(row.values()) for row in rows_of(path)] == expected
    assert rows_of(write(tmp_path / "b.csv", "image,answer\n0.png, no\n")) == [{"image": "0.png", "answer": " no"}]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rows.csv", dict(doublequote=False)),
        ("rows.csv", dict(doublequote=False, quoting=csv.QUOTE_ALL)),
        ("rows.tsv", dict(sep="\t", quoting=csv.QUOTE_NONE)),
        ("rows.csv", dict(quoting=csv.QUOTE_NONE)),
    ],
)
def test_backslashes_before_quotation_marks_and_delimiters_are_no_part_of_the_values(tmp_path, name, options):
    # As pandas, Spark and MySQL write them.
    pandas = pytest.importorskip("pandas")
    rows = [{"q": 'He said "no", twice', "a": "1,5\t2"}, {"q": '"all"', "a": "C:\\new"}, {"q": "x", "a": "y\\"}]
    path = tmp_path / name
    pandas.DataFrame(rows).to_csv(path, index=False, escapechar="\\", **options)
    assert rows_of(path) == rows


@pytest.mark.parametrize(
    "rows",
    [
        [("C:\\images\\", "a"), ('say "x"', "b")],
        [('{"a": "x\\"y"}', "a"), ('{"b": "\\""}', "b")],  # JSON in a column
        [("Gr\\" + '"o\\ss', "a")],
    ],
)
def test_backslashes_of_other_files_are_kept(tmp_path, rows):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "rows.csv"
    pandas.DataFrame(rows, columns=["q", "a"]).to_csv(path, index=False)
    assert [tuple(row.values()) for row in rows_of(path)] == rows


def test_the_headers_of_joined_files_are_no_rows(tmp_path):
    table = "\ufeffquestion,answer\r\nwhere?,left\r\n"
    path = write(tmp_path / "rows.csv", table + table + "answer,question\r\n")
    assert [tuple(row.values()) for row in rows_of(path)] == [("where?", "left")] * 2 + [("answer", "question")]
    assert Records(path).describe(1) == f"{path}, line 4"
    assert rows_of(write(tmp_path / "one.csv", "text\na\ntext\n")) == [{"text": "a"}, {"text": "text"}]


@pytest.mark.parametrize("orient", ["columns", "split", "records", "index", "table"])
def test_objects_of_columns_are_read_as_rows(tmp_path, orient):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS)
    frame.to_json(tmp_path / "rows.json", orient=orient)
    rows = [{key: value for key, value in row.items() if key != "index"} for row in rows_of(tmp_path / "rows.json")]
    assert rows == ROWS
    assert "(row 3)" in Records(tmp_path / "rows.json").describe(2)


@pytest.mark.parametrize(
    "labels",
    [
        ("5", "6", "7"),
        ("0", "2", "9"),
        ("0001", "0002", "0003"),
        ("-1", "0", "1"),
        ("0.5", "1.5", "2.5"),
        ("1577836800000", "1577923200000", "1578009600000"),
        ("2020-01-01T00:00:00.000", "2020-01-02T00:00:00.000", "2020-01-03T00:00:00.000"),
    ],
)
def test_columns_with_any_numbers_or_dates_as_labels_are_read_as_rows(tmp_path, caplog, labels):
    """A table of pandas of which some rows were chosen keeps their labels."""
    columns = {name: dict(zip(labels, [row[name] for row in ROWS], strict=True)) for name in ROWS[0]}
    path = write(tmp_path / "rows.json", json.dumps(columns))
    with caplog.at_level("INFO", logger="mllm"):
        assert rows_of(path) == ROWS
    assert f"the index of its rows in pandas, such as {labels[0]}, is left out" in caplog.text
    path = write(tmp_path / "rows.json", json.dumps(dict(zip(labels, ROWS, strict=True))))
    assert rows_of(path) == ROWS  # an object of rows


def test_columns_with_names_as_labels_are_refused_and_rows_are_read(tmp_path):
    rows = {"p1": {"image": "a.png", "answer": "yes"}, "p2": {"image": "b.png", "answer": "no"}}
    assert rows_of(write(tmp_path / "rows.json", json.dumps(rows))) == list(rows.values())
    columns = {name: {patient: row[name] for patient, row in rows.items()} for name in ("image", "answer")}
    path = write(tmp_path / "rows.json", json.dumps(columns))
    with pytest.raises(DataError, match=r"columns whose rows have names.*frame\.reset_index\(\)\.to_json"):
        Records(path)


@pytest.mark.parametrize("marks", ["''", "\u201c\u201d", "\u2018\u2019"])
def test_values_in_other_quotation_marks_are_refused_or_reported(tmp_path, caplog, marks):
    def quoted(*values):
        return ",".join(f"{marks[0]}{value}{marks[1]}" for value in values) + "\n"

    rows = quoted("a.png", "Is it?", "yes") + quoted("b.png", "Is it?", "no")
    for header in (quoted("image", "question", "answer"), "image,question,answer\n"):
        with pytest.raises(DataError, match='rows.csv, line 1: values are enclosed in other quotation marks than "'):
            Records(write(tmp_path / "rows.csv", header + rows))
    plain = "image,question,answer\n" + f"a.png,Is it?,{marks[0]}yes{marks[1]}\n"
    Records(write(tmp_path / "rows.csv", f"{plain}b.png,Is it?,\n"))
    assert "all values of column 'answer' are enclosed in quotation marks, which are a part of them" in caplog.text
    caplog.clear()
    Records(write(tmp_path / "rows.csv", f"{plain}b.png,Is it?,no\n"))
    Records(write(tmp_path / "rows.csv", f"{plain}b.png,Is it?,{marks[0]}no\n"))
    assert not caplog.text


def test_a_single_column_stays_one(tmp_path):
    assert rows_of(write(tmp_path / "rows.csv", "text; of a report\none\ntwo; three\n")) == [
        {"text; of a report": "one"},
        {"text; of a report": "two; three"},
    ]


def test_json_lines_in_a_json_file_and_a_list_in_a_jsonl_file_are_read(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    path = write(tmp_path / "rows.json", lines)
    assert rows_of(path) == ROWS
    assert Records(path).describe(1) == f"{path}, line 2"
    path = write(tmp_path / "list.jsonl", json.dumps(ROWS, indent=1))
    assert rows_of(path) == ROWS
    assert Records(path).describe(1) == f"{path}, line 7"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"PK\x03\x04abc", "is not a table in text but a zip archive or an Excel workbook"),
        ("rows.csv", b"\xd0\xcf\x11\xe0abc", "an Excel workbook: save the sheet as CSV"),
        ("rows.json", b"PAR1abc", "a Parquet file: rename it to .parquet"),
        ("rows.jsonl", '{"a": 1}\n'.encode("utf-16-le"), "seems to be in UTF-16 without a byte order mark"),
        ("rows.csv", "a,b\nGröße,1\n".encode("latin-1"), "is not UTF-8 text .*: save it as UTF-8"),
        (
            "rows.csv",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n",
            "pointer of Git LFS: fetch the file",
        ),
        ("rows.csv", b"<!DOCTYPE html><html></html>", "a web page: download the file itself"),
        ("rows.csv", b"BZh91AY&SY\0", "compressed by bzip2: extract it"),
        ("rows.jsonl", b"\xfd7zXZ\0", "compressed by xz: extract it"),
        ("rows.jsonl", b"\x28\xb5\x2f\xfd\0", "compressed by zstd: extract it"),
        ("rows.csv", b"ARROW1\0\0", "an Arrow or Feather file"),
        ("rows.csv", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("rows.xlsx", b"PK\x03\x04", "is a workbook: save the sheet as CSV"),
        ("rows.csv", b"404: Not Found", "has a first line and no rows"),
        ("rows.jsonl", b'{"a": 1, "a": 2}', r"rows\.jsonl, line 1: an object has a duplicate key"),
        ("rows.json", b'[{"a": {"b": 1, "b": 2}}]', r"rows\.json: an object has a duplicate key"),
        ("rows.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r"rows\.jsonl, line 1: .*5000 digits"),
        ("rows.json", b"[" * 100_000, r"rows\.json is not valid JSON \(nested too deeply\)"),
        ("rows.jsonl", b"[" * 100_000, r"rows\.jsonl, line 1: not valid JSON \(nested too deeply\)"),
    ],
)
def test_the_message_about_another_kind_of_file_names_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name)


def test_the_message_about_a_path_of_windows_mentions_windows():
    with pytest.raises(DataError, match=r"data_path C:\\data\\rows.csv is a Windows path"):
        Records(r"C:\data\rows.csv")
