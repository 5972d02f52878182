"""True marks in the fields of a row."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mllm.engine.evaluation import mark_fields
from mllm.errors import DataError
from mllm.predict.true_marks import true_marks
from mllm.structures import Answer, Mark

IMAGES = [Image.new("RGB", (40, 30)), Image.new("RGB", (20, 50))]


def test_fields_of_predictions_become_marks_again() -> None:
    mask = np.zeros((30, 40), bool)
    mask[3:9, 5:20] = True
    marks = (Mark(box=(1.0, 2.0, 30.0, 20.0)), Mark(box=(1.0, 2.0, 20.0, 50.0), image=1), Mark(point=(3.0, 4.0)))
    fields = mark_fields(Answer("", marks), "reference_") | mark_fields(Answer("", (Mark(mask=mask),)), "other_")
    again = true_marks({**fields, "masks": fields["other_masks"]}, IMAGES)
    assert again[:3] == list(marks)
    assert np.array_equal(again[3].mask, mask)


def test_one_box_and_one_point_need_no_list() -> None:
    assert true_marks({"bbox": [1, 2, 30, 20], "point": [3, 4]}, IMAGES) == [
        Mark(box=(1, 2, 30, 20)),
        Mark(point=(3, 4)),
    ]
    assert true_marks({"bbox": None, "boxes": []}, IMAGES) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"bbox": "left"}, "field 'bbox' must be x1 y1 x2 y2 in pixels, or a list of these"),
        ({"boxes": [[1, 2, 3]]}, "field 'boxes' must be x1 y1 x2 y2 in pixels"),
        ({"boxes": [[1, 2, 60, 20]]}, "is not a box in its image of 40 x 30 pixels"),
        ({"boxes": [[1, 2, 30, 20]], "box_images": [2]}, "has a box in image 2, and the row has 2 images"),
        ({"masks": [[1, 2]]}, "field 'masks' must be a list of masks as run lengths of COCO"),
    ],
)
def test_other_forms_are_refused(row, message) -> None:
    with pytest.raises(DataError, match=message):
        true_marks(row, IMAGES)
