"""Tests of the metrics of boxes and masks against values computed by hand."""

from functools import partial

import numpy as np
import pytest
from scores import score

from mllm.metrics.grounding import Rec, Res
from mllm.structures import Answer, Mark

rec, res = partial(score, Rec), partial(score, Res)

TRUE = (0.0, 0.0, 10.0, 10.0)
HALF = (0.0, 0.0, 5.0, 10.0)
"""IoU 0.5 with TRUE: not enough."""
MOST = (0.0, 0.0, 8.0, 10.0)
"""IoU 0.8."""
FAR = (50.0, 50.0, 60.0, 60.0)


def boxes(*corners, text=""):
    return Answer(text, tuple(Mark(box=box) for box in corners))


def filled(*columns):
    """Return a mask [10, 10] with complete columns set."""
    mask = np.zeros((10, 10), bool)
    mask[:, list(columns)] = True
    return mask


def masks(*several):
    return Answer("", tuple(Mark(mask=mask) for mask in several))


@pytest.mark.parametrize(
    ("actual", "expected", "accuracy", "mean_iou"),
    [
        ([TRUE], [TRUE], 1, 1),
        ([MOST], [TRUE], 1, 0.8),
        ([HALF], [TRUE], 0, 0.5),
        ([FAR], [TRUE], 0, 0),
        ([], [TRUE], 0, 0),
        ([FAR, TRUE], [TRUE], 0, 0),  # the first box counts
        ([TRUE, FAR], [TRUE], 1, 1),
        ([FAR, TRUE], [TRUE, FAR], 1, 1),  # several: in any order
        ([MOST], [TRUE, FAR], 1 / 2, 0.4),
        ([TRUE, FAR, MOST], [TRUE, FAR], 2 / 3, 2 / 3),  # an additional box counts as an error
        ([TRUE, MOST], [TRUE, TRUE], 1, 0.9),
        ([], [TRUE, FAR], 0, 0),
    ],
)
def test_figures_of_boxes_by_hand(actual, expected, accuracy, mean_iou):
    figures = rec([boxes(*actual)], [boxes(*expected)])
    assert figures == pytest.approx(
        {"accuracy": accuracy, "mean_iou": mean_iou, "failed": int(not actual), "target_failed": 0, "samples": 1}
    )


def test_failures_are_counted_and_have_a_score_of_0():
    """Four predictions: one correct, one wrong, one without a box, one unreadable; a fifth has no target."""
    predictions = [boxes(TRUE), boxes(FAR), Answer("none"), Answer("[0.1,0.", unreadable=1), boxes(TRUE)]
    figures = rec(predictions, [boxes(TRUE)] * 4 + [Answer("no box")])
    assert figures == {"accuracy": 0.25, "mean_iou": 0.25, "failed": 2, "target_failed": 1, "samples": 4}


def test_a_box_in_another_image_is_wrong():
    elsewhere = Answer("", (Mark(box=TRUE, image=1),))
    assert rec([elsewhere], [boxes(TRUE)])["accuracy"] == 0
    assert rec([elsewhere], [elsewhere])["accuracy"] == 1


def test_masks_by_hand():
    """IoU 1, 0.25 and 0 (without a mask); the areas are 1, 4 and 2 columns."""
    predictions = [masks(filled(0)), masks(filled(0)), Answer("nothing")]
    references = [masks(filled(0)), masks(filled(0, 1, 2, 3)), masks(filled(5, 6))]
    figures = res(predictions, references)
    assert figures["cIoU"] == pytest.approx(2 / 7)
    assert figures["gIoU"] == pytest.approx(1.25 / 3)
    assert [figures[f"Pr@{threshold}"] for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)] == pytest.approx([1 / 3] * 5)
    assert figures["box_accuracy@0.5"] == pytest.approx(1 / 3)
    assert (figures["failed"], figures["target_failed"], figures["samples"], figures["no_target"]) == (1, 0, 3, 0)


def test_precision_counts_thresholds_below_the_iou():
    """IoU 0.7 (7 of 10 columns) exceeds 0.5 and 0.6 and no more."""
    figures = res([masks(filled(*range(7)))], [masks(filled(*range(10)))])
    assert [figures[f"Pr@{threshold}"] for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)] == [1, 1, 0, 0, 0]


def test_the_masks_of_one_answer_are_united():
    figures = res([masks(filled(1), filled(2))], [masks(filled(1, 2))])
    assert (figures["cIoU"], figures["gIoU"]) == (1, 1)


def test_an_empty_predicted_mask_is_wrong_but_not_a_failure():
    figures = res([masks(filled())], [masks(filled(1))])
    assert (figures["gIoU"], figures["cIoU"], figures["failed"]) == (0, 0, 0)


def test_samples_without_target_are_counted_separately():
    references = [masks(filled()), Answer("There is none."), Answer("There is none."), masks(filled(1))]
    predictions = [Answer("none"), masks(filled(3)), masks(filled()), masks(filled(1, 2))]
    figures = res(predictions, references)
    assert figures["no_target"] == 3
    assert figures["no_target_accuracy"] == pytest.approx(2 / 3)
    assert (figures["gIoU"], figures["cIoU"], figures["samples"]) == (0.5, 0.5, 1)


def test_a_reference_with_a_box_alone_is_counted_and_left_out():
    figures = res([masks(filled(1)), masks(filled(1))], [boxes(TRUE), masks(filled(1))])
    assert (figures["target_failed"], figures["samples"], figures["gIoU"]) == (1, 1, 1)


@pytest.mark.parametrize(("metric", "reference"), [(rec, Answer("no box")), (res, boxes(TRUE))])
def test_figures_without_a_target_are_nan(metric, reference):
    figures = metric([boxes(TRUE)], [reference])
    assert (figures["samples"], figures["target_failed"]) == (0, 1)
    assert any(value != value for value in figures.values())
