from __future__ import annotations

import json

from PIL import Image

from mllm.dataset.phantoms.miniature import write_miniature


def test_rows_have_all_fields_and_images(tmp_path):
    options = write_miniature(tmp_path / "train", 9, ("image", "question", "finding", "modality"))
    rows = [json.loads(line) for line in (tmp_path / "train" / "rows.jsonl").read_text().splitlines()]
    assert options == {"data_path": str(tmp_path / "train" / "rows.jsonl"), "image_folder": str(tmp_path / "train")}
    assert len(rows) == 9
    for row in rows:
        assert set(row) == {"image", "question", "answer", "patient", "finding", "modality"}
        assert row["finding"]
        assert Image.open(tmp_path / "train" / row["image"]).size == (224, 224)
    assert rows[0]["modality"] == "CT"
    assert rows[0]["question"]


def test_writing_twice_changes_nothing_and_leaves_no_temporary_files(tmp_path):
    write_miniature(tmp_path / "train", 3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "train").iterdir()}
    write_miniature(tmp_path / "train", 3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "train").iterdir()} == before
    assert set(before) == {"000.png", "001.png", "002.png", "rows.jsonl"}
