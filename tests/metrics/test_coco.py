"""Tests of average precision against pycocotools with files in the COCO format, and against values computed by hand."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scores import score

from mllm.metrics.coco import CocoAP, rle
from mllm.metrics.scoring import Series
from mllm.structures import Answer, Mark

SIZE = (40, 60)


def coco_ap(predictions, references):
    return score(CocoAP, predictions, references)


def drawn(box):
    mask = np.zeros(SIZE, bool)
    x1, y1, x2, y2 = (int(value) for value in box)
    mask[y1:y2, x1:x2] = True
    mask[y1, x1] = False  # a corner is missing: boxes and masks differ
    return mask


def answer(*boxes):
    return Answer("", tuple(Mark(box=tuple(map(float, box)), mask=drawn(box)) for box in boxes))


@pytest.fixture
def scene():
    """Return ten samples with one to three objects, and predictions that are shifted, missing or additional."""
    rng = np.random.default_rng(4)
    predictions, references = [], []
    for number in range(10):
        corners = rng.integers(0, (40, 20), (1 + number % 3, 2))
        true = [(x, y, x + 14, y + 12) for x, y in corners.tolist()]
        moved = [(x1 + d, y1, x2 + d, y2) for (x1, y1, x2, y2), d in zip(true, (0, 2, 5), strict=False)]
        more = [(0, 0, 6, 6)] if number % 2 else []
        predictions.append(answer(*(moved[1:] if number == 6 else moved), *more))
        references.append(answer(*true))
    return predictions, references


def by_file(predictions, references, folder, kind, samples=()):
    """Return the reference figures: files of annotations and results, COCO.loadRes and COCOeval.

    `samples` are those of the predictions, of which some are copies: their objects follow each other by their scores.
    """

    def rows(answers):
        marks = [(image, mark) for image, one in enumerate(answers) for mark in one.marks]
        for number, (image, mark) in enumerate(marks, start=1):
            x1, y1, x2, y2 = mark.box
            box = [x1, y1, x2 - x1, y2 - y1]
            row = {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "area": box[2] * box[3]}
            yield row | ({"bbox": box} if kind == "bbox" else {"segmentation": rle(mark.mask)})

    images = [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(len(references))]
    truth = {"info": {}, "images": images, "categories": [{"id": 1}], "annotations": list(rows(references))}
    (folder / "truth.json").write_text(json.dumps(truth))
    found = list(rows(predictions))
    if samples:
        positions = [position for one in predictions for position in range(len(one.marks))]
        keys = [(samples[row["image_id"]], position) for row, position in zip(found, positions, strict=True)]
        found = [{**row, "score": -float(sorted(set(keys)).index(key))} for row, key in zip(found, keys, strict=True)]
    (folder / "found.json").write_text(json.dumps([{"score": 1.0, **row} for row in found]))
    with contextlib.redirect_stdout(io.StringIO()):
        table = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(table, table.loadRes(str(folder / "found.json")), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


def test_average_precision_equals_pycocotools(scene, tmp_path, capsys):
    figures = coco_ap(*scene)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        expected = by_file(*scene, tmp_path, kind)
        assert [figures[f"{name}_{key}"] for key in ("AP", "AP50", "AP75")] == pytest.approx(list(expected))
        assert 0.2 < expected[0] < expected[1] < 1
    assert figures["mask_AP"] != figures["box_AP"]
    assert (figures["failed"], figures["samples"]) == (1, 10)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("cells", [5, 30, 10_000])
def test_bootstrap_samples_equal_pycocotools_with_repeated_images(scene, tmp_path, monkeypatch, cells):
    """Images are drawn several times or not at all; an object of a copy follows the same object."""
    predictions, references = scene
    metric = CocoAP()
    for pair in zip(predictions, references, strict=True):
        metric.add(*pair)
    rng = np.random.default_rng(1)
    weights = np.stack([np.bincount(rng.integers(0, 10, 10), minlength=10) for _ in range(5)])
    monkeypatch.setattr("mllm.metrics.coco.CELLS", cells)
    figures = metric.figures(weights.astype(float))
    for number, row in enumerate(weights):
        copies = [i for i, count in enumerate(row) for _ in range(count)]
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            drawn = [[answers[i] for i in copies] for answers in scene]
            expected = by_file(*drawn, tmp_path, kind, copies)
            values = [figures[f"{name}_{key}"][number] for key in ("AP", "AP50", "AP75")]
            assert values == pytest.approx(list(expected), abs=1e-9)
    assert len(set(figures["box_AP"])) == 5


def test_average_precision_has_an_interval_by_patient(scene):
    predictions, references = scene
    result = Series(CocoAP)
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        result.add(prediction, replace(reference, group=f"p{i // 2}"))
    figures = result.result(200)
    assert figures["box_AP_ci_low"] < figures["box_AP"] < figures["box_AP_ci_high"]


def test_precision_and_recall_do_not_depend_on_the_order():
    """Four objects, three predictions, two of them correct."""
    right, other, wrong = (0, 0, 10, 10), (20, 20, 30, 30), (40, 0, 50, 10)
    predictions = [answer(right), answer(wrong, other), Answer("none")]
    references = [answer(right), answer(other), answer(right, other)]
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        figures = coco_ap([predictions[i] for i in order], [references[i] for i in order])
        assert (figures["box_precision@0.5"], figures["box_recall@0.5"]) == (2 / 3, 2 / 4)
        assert figures["failed"] == 1


def test_perfect_predictions_are_one_missing_ones_zero_and_no_targets_nan():
    true = [answer((0, 0, 10, 10)), answer((5, 5, 20, 20))]
    assert coco_ap(true, true)["box_AP"] == pytest.approx(1)
    nothing = coco_ap([Answer(""), Answer("")], true)
    assert (nothing["box_AP"], nothing["mask_AP"], nothing["failed"]) == (0, 0, 2)
    unknown = coco_ap(true, [Answer(""), Answer("")])
    assert np.isnan(unknown["box_AP"])
    boxes_alone = [Answer("", (Mark(box=(0.0, 0.0, 10.0, 10.0)),))]
    assert not any(key.startswith("mask") for key in coco_ap(boxes_alone, boxes_alone))


def test_objects_in_different_images_of_a_sample_are_not_paired():
    one, other = (Answer("", (Mark(box=(0.0, 0.0, 10.0, 10.0), image=image),)) for image in (0, 1))
    assert coco_ap([one], [other])["box_AP"] == 0
    assert coco_ap([other], [other])["box_AP"] == pytest.approx(1)


def test_run_lengths_are_read_by_pycocotools_after_json():
    mask = np.random.default_rng(2).random((7, 9)) < 0.5
    assert (coco_mask.decode(json.loads(json.dumps(rle(mask)))) == mask).all()
