"""Formatting of answers and reading of the inputs of a prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.predict.model_answer import format_answer
from mllm.predict.predict import PredictOptions, read_questions, read_sample
from mllm.predict.views import ViewInputs
from mllm.structures import Answer, Mark

ARGS = ModelArgs("medgemma", "a/b")


def test_an_answer_lists_its_marks_in_pixels() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:4] = True
    marks = (Mark(box=(1.0, 2.04, 3.0, 4.0)), Mark(mask=mask, image=1), Mark(point=(0.5, 1.0)))
    assert format_answer(Answer("Here.", marks), 2).splitlines() == [
        "Here.",
        "  1 in image 1: box x1 y1 x2 y2 = 1.0 2.0 3.0 4.0",
        "  2 in image 2: mask of 4 pixels",
        "  3 in image 1: point x y = 0.5 1.0",
    ]
    assert format_answer(Answer("None."), 1) == "None."


def test_a_question_has_its_images_and_its_modality(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    sample = read_sample(PredictOptions(question="Normal?", modality="CT", images=[path, path]), ARGS)
    assert [turn.text for turn in sample.turns] == ["CT: Normal?"]
    assert [image.size for image in sample.images] == [(8, 6)] * 2


def test_views_require_a_vision_model_and_an_output_file_must_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="require a model with part='vision'"):
        read_sample(PredictOptions(views=ViewInputs(video="a.avi")), ARGS)
    (tmp_path / "out.jsonl").touch()
    with pytest.raises(ConfigError, match=r"out\.jsonl exists; remove it or choose another name"):
        read_questions(PredictOptions(batch="rows.jsonl", out=str(tmp_path / "out.jsonl")))
