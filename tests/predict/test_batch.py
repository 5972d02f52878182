"""A file of questions is answered row by row, and errors name the line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mllm.errors import ConfigError, DataError
from mllm.pipeline.predict import main
from mllm.report.drawing import PREDICTED, TRUE

FEW = ["--max-new-tokens", "8"]


def test_a_file_of_questions_is_answered_in_order(
    generating_adapter: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    batch = [
        "--adapter",
        str(generating_adapter),
        "--batch",
        str(pictures / "questions.jsonl"),
        "--out",
        str(out),
        *FEW,
    ]
    assert main([*batch, "--batch-size", "3"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    expected = [json.loads(line) for line in (pictures / "questions.jsonl").read_text().splitlines()]
    predictions = [row.pop("prediction") for row in rows]
    assert rows == expected
    capsys.readouterr()
    main(["--adapter", str(generating_adapter), "--image", str(pictures / "2.png"), "--question", "CT: Why?", *FEW])
    assert capsys.readouterr().out == predictions[2] + "\n"
    with pytest.raises(ConfigError, match=r"out\.jsonl exists"):
        main(batch)


def test_a_bad_row_raises_with_its_line_or_is_skipped(
    generating_adapter: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"image": "0.png", "question": "What?"},
        {"image": "absent.png", "question": "What?"},
        {"image": "1.png", "question": "One <end_of_turn> two?"},
        {"image": "2.png", "qestion": "What?"},
        {"image": "0.png", "question": "Half a \ud83d character?"},
        {"image": "2.png", "question": "What?", "note": "half a \ud83d character"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    batch = ["--adapter", str(generating_adapter), "--batch", str(file), "--image-folder", str(pictures), *FEW]
    with (
        monkeypatch.context() as patch,
        pytest.raises(DataError, match=r"rows\.jsonl, line 2: .*absent\.png") as excinfo,
    ):
        patch.setattr("mllm.predict.predict.load_model", None)  # the rows are checked before the model is loaded
        main([*batch, "--out", str(out)])
    assert str(excinfo.value).endswith("; correct the row, or leave such rows out with --on-error skip")
    assert os.listdir(tmp_path) == ["rows.jsonl"]
    assert main([*batch, "--out", str(out), "--on-error", "skip"]) == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["image"] for row in written] == ["0.png", "2.png"]
    assert written[1]["note"] == rows[-1]["note"]


def test_a_file_without_a_usable_row_is_refused(generating_adapter: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"image": "absent.png", "question": "What?"}\n')
    batch = ["--adapter", str(generating_adapter), "--batch", str(file), "--out", str(tmp_path / "out.jsonl")]
    with pytest.raises(DataError, match=r"no row of the batch split could be used; one of them: .*rows\.jsonl, line 1"):
        main([*batch, "--on-error", "skip"])
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_marks_are_written_to_the_rows_and_drawn_to_a_folder(
    generating_adapter: Path, pictures: Path, tmp_path: Path, pointing: Any
) -> None:
    out, drawn = tmp_path / "out.jsonl", tmp_path / "drawn"
    questions = [{"image": "0.png", "question": "Where?", "boxes": [[1, 2, 3, 4]]}, {"question": "How many?"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in questions))
    batch = ["--adapter", str(generating_adapter), "--batch", str(file), "--image-folder", str(pictures), *FEW]
    assert main([*batch, "--out", str(out), "--draw", str(drawn)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["boxes"] == [[10.0, 5.0, 40.0, 30.0], [20.0, 10.0, 50.0, 30.0]]
    assert rows[0]["masks"][0]["size"] == [60, 80]
    assert rows[0]["reference_boxes"] == [[1, 2, 3, 4]], "fields of the row are kept under another name"
    assert rows[0]["drawings"] == os.listdir(drawn) == ["000001.png"]
    pixels = np.asarray(Image.open(drawn / "000001.png"))
    assert all((pixels == np.array(color)).all(axis=2).any() for color in (TRUE, PREDICTED))
    assert set(rows[1]) == {"question", "prediction"}
    with pytest.raises(ConfigError, match="not an empty folder"):
        main([*batch, "--out", str(tmp_path / "other.jsonl"), "--draw", str(drawn)])
