"""Tests of rows that are joined from several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.dataset.tables.listed import ListedRecords
from mllm.dataset.tables.records import ERROR
from mllm.dataset.tasks.labels import PerLabelRecords
from mllm.errors import DataError


def test_reading_a_row_with_an_error_raises_it() -> None:
    rows = [{"image": "a.png", ERROR: "image a.png does not exist"}, {"image": "b.png", ERROR: ""}, {"image": "c.png"}]
    records = ListedRecords(Path("set"), rows, ["t.csv, line 2", "t.csv, line 3", "t.csv, line 4"])
    assert records.row_or_error(0) == {ERROR: "image a.png does not exist"}
    assert records.first_row() == {"image": "b.png"}
    with pytest.raises(DataError, match="^image a.png does not exist$"):
        records[0]
    assert [records[index]["image"] for index in (1, 2)] == ["b.png", "c.png"]


def test_a_faulty_row_is_one_row_where_uncertain_labels_are_left_out() -> None:
    rows = [{ERROR: "no image"}, {"edema": "-1", "mass": "1"}, {"edema": "0", "mass": "-1"}]
    records = PerLabelRecords(ListedRecords(Path("set"), rows), ["edema", "mass"], certain=True)
    assert [ERROR in records.row_or_error(index) for index in range(len(records))] == [True, False, False]
    assert [records[index]["label"] for index in (1, 2)] == ["mass", "edema"]
    with pytest.raises(DataError, match="no image"):
        records[0]


def test_a_change_of_a_row_that_was_read_is_not_kept() -> None:
    records = ListedRecords(Path("set"), [{"boxes": [[1, 2, 3, 4]]}])
    records[0]["boxes"][0].clear()
    assert records[0] == {"boxes": [[1, 2, 3, 4]]}
