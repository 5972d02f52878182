"""Predictions are written as JSON lines, and the file is replaced only when all rows are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mllm.errors import DataError
from mllm.predict.writer import write_predictions


def test_rows_are_written_in_order(tmp_path: Path) -> None:
    rows = [{"prediction": "Zyste am Übergang", "boxes": [[1.0, 2.0, 3.0, 4.0]]}, {"prediction": ""}]
    assert write_predictions(tmp_path / "out.jsonl", iter(rows)) == 2
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == rows
    assert "Übergang" in text


def test_after_an_error_the_old_file_stays(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"prediction": "new"}
        raise DataError("rows.jsonl, line 2")

    (tmp_path / "out.jsonl").write_text("old")
    with pytest.raises(DataError, match="line 2"):
        write_predictions(tmp_path / "out.jsonl", rows())
    assert os.listdir(tmp_path) == ["out.jsonl"]
    assert (tmp_path / "out.jsonl").read_text() == "old"
