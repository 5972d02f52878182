"""Pictures of the rows of an evaluation."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mllm.dataset.base import SampleDataset
from mllm.engine.answered_rows import Rows
from mllm.engine.evaluation import Evaluation, mark_fields
from mllm.predict.drawings import draw_evaluation
from mllm.report.drawing import PREDICTED, TRUE
from mllm.structures import Answer, Mark, Sample


class Split(SampleDataset):
    """Rows with one image of 512 pixels."""

    def __len__(self) -> int:
        return 6

    def sample(self, index: int, epoch: int = 0) -> Sample:
        return Sample([], [Image.new("RGB", (512, 512), (90, 90, 90))])

    def describe(self, index: int, epoch: int = 0) -> str:
        return f"row {index}"

    def group(self, index: int, epoch: int = 0) -> str | None:
        return None


def test_predicted_and_true_boxes_of_a_row_are_in_one_picture(tmp_path) -> None:
    true, predicted = Answer("", (Mark(box=(50, 60, 200, 220)),)), Answer("", (Mark(box=(80, 90, 230, 250)),))
    answers = [(predicted, true), (Answer("none"), Answer("none")), (Answer("none"), true)]
    rows = [
        {"prediction": said.text, "reference": truth.text, **mark_fields(said), **mark_fields(truth, "reference_")}
        for said, truth in answers
    ]
    numbered = list(zip((0, 4, 5), rows, strict=True))
    evaluation = Evaluation(Rows.of(numbered), {}, {}, [])
    drawn_rows = draw_evaluation(evaluation, Split(), tmp_path / "drawn").rows
    assert not any("drawings" in row for row in rows), "rows are not changed"
    assert [row.get("drawings") for row in drawn_rows] == [["000001.png"], None, ["000003.png"]]
    for name, colors in (("000001.png", (TRUE, PREDICTED)), ("000003.png", (TRUE,))):
        picture = np.asarray(Image.open(tmp_path / "drawn" / name))[:512]
        drawn = [color for color in (TRUE, PREDICTED) if (picture == np.array(color)).all(axis=2).any()]
        assert drawn == list(colors)
