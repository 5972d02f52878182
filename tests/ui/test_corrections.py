"""Corrections: rows that a dataset reads with the pixels that the model read, and nothing else of a file."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.errors import ConfigError, DataError
from mllm.ui.corrections import Corrections


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8))


def test_a_correction_is_a_row_of_a_dataset(tmp_path):
    corrections = Corrections(tmp_path / "corrections")
    assert not corrections.folder.exists()
    assert corrections.keep([noise(0)], " Is it <i>large</i>? ", " No.\nIt is small. ", "A17", "CT") == 1
    assert corrections.keep([noise(1), noise(2)], "Which is older?", "Die zweite: größer.") == 2
    dataset = VQADataset(corrections.table, corrections.pictures)
    first, second = dataset[0], dataset[1]
    assert [turn.text for turn in first.turns] == ["<image> CT: Is it <i>large</i>?", "No.\nIt is small."]
    assert (first.group, second.group) == ("A17", None)
    assert [image.tobytes() for image in second.images] == [noise(1).tobytes(), noise(2).tobytes()]
    assert second.turns[1].text == "Die zweite: größer."
    assert {path.name for path in corrections.folder.iterdir()} == {"train.jsonl", "images"}


def test_a_second_correction_of_a_question_replaces_the_first(tmp_path):
    corrections = Corrections(tmp_path)
    for image, question, answer in ((0, "What?", "a"), (1, "What?", "b"), (0, "Why?", "c"), (0, "What?", "d")):
        corrections.keep([noise(image)], question, answer)
    rows = [json.loads(line) for line in corrections.table.read_text().splitlines()]
    assert [(row["question"], row["answer"]) for row in rows] == [("What?", "b"), ("Why?", "c"), ("What?", "d")]
    assert len(list(corrections.pictures.iterdir())) == 2


def test_corrections_of_several_people_at_a_time_are_all_kept(tmp_path):
    corrections = Corrections(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: corrections.keep([noise(number % 3)], f"{number}?", "yes"), range(40)))
    rows = [json.loads(line) for line in corrections.table.read_text().splitlines()]
    assert sorted(row["question"] for row in rows) == sorted(f"{number}?" for number in range(40))


def test_incomplete_corrections_and_damaged_tables_are_refused(tmp_path):
    corrections = Corrections(tmp_path)
    for images, question, answer, reason in (
        ([noise(0)], " ", "yes", "needs a question"),
        ([noise(0)], "What?", " \n", "needs the right answer"),
        ([], "What?", "yes", "needs a picture"),
    ):
        with pytest.raises(DataError, match=reason):
            corrections.keep(images, question, answer)
    assert not list(tmp_path.iterdir())
    corrections.table.write_text('{"question": "a"}\n[1]\n')
    with pytest.raises(DataError, match=r"train.jsonl, line 2: it is no JSON object"):
        corrections.keep([noise(0)], "What?", "yes")
    assert corrections.table.read_text() == '{"question": "a"}\n[1]\n'
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        Corrections(tmp_path / "file").keep([noise(0)], "What?", "yes")
