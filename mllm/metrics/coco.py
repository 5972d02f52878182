"""Average precision and mask encoding of COCO, computed by pycocotools."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mllm.metrics.areas import area, box_of
from mllm.metrics.base import reads
from mllm.registry import METRICS
from mllm.structures import Answer, Mark

FIGURES = ("AP", "AP50", "AP75")
"""The first three of the twelve figures of COCOeval."""


@METRICS.register_module(name="coco_ap")
@reads("box")
def coco_ap(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Compute the average precision of COCO for boxes and, if the references have masks, for masks.

    There is one class, with at most 100 objects per image. An answer in text has no confidences, so every object
    has the score 1.0, and AP does not measure ranking: pycocotools keeps equal scores in the order of the samples, and
    its precision-recall curve depends on that order. Do not compare it with the AP of a detector that ranks its boxes.
    `precision@0.5` and `recall@0.5` do not depend on the order. Objects of different images are never matched.

    Returns:
        `box_AP`, `box_AP50`, `box_AP75`, `box_precision@0.5`, `box_recall@0.5`, the same for `mask_`, `failed`
        (predictions without an object where the reference has one) and `samples`.
    """
    assert len(predictions) == len(references)
    pairs = list(zip(predictions, references, strict=True))
    figures: dict[str, float] = {}
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        if name == "box" or any(mark.mask is not None for answer in references for mark in answer.marks):
            figures |= {f"{name}_{key}": value for key, value in _average_precision(pairs, kind).items()}
    figures["failed"] = sum(_has_object(reference) and not _has_object(prediction) for prediction, reference in pairs)
    figures["samples"] = len(pairs)
    return figures


def rle(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask [H, W] as compressed run lengths of COCO: `{"size": [H, W], "counts": "..."}`."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(length) for length in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _has_object(answer: Answer) -> bool:
    return any(box_of(mark) is not None for mark in answer.marks)


def _average_precision(pairs: Sequence[tuple[Answer, Answer]], kind: str) -> dict[str, float]:
    """Return the figures of COCOeval for 'bbox' or 'segm'; NaN without objects in the references."""
    images = [
        (number, image)
        for number, pair in enumerate(pairs)
        for image in sorted({0} | {mark.image for answer in pair for mark in answer.marks})
    ]
    ids = {image: identifier for identifier, image in enumerate(images, start=1)}
    with redirect_stdout(io.StringIO()):  # pycocotools prints tables
        targets, predictions = (_table([pair[i] for pair in pairs], ids, kind) for i in (1, 0))
        evaluation = COCOeval(targets, predictions, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = {name: float(value) for name, value in zip(FIGURES, evaluation.stats, strict=False)}
    matched, predicted, true = _counts(evaluation)
    figures["precision@0.5"] = matched / predicted if predicted else float("nan")
    figures["recall@0.5"] = matched / true if true else float("nan")
    return {name: float("nan") if value < 0 else value for name, value in figures.items()}


def _counts(evaluation: COCOeval) -> tuple[int, int, int]:
    """Return the numbers of matched, predicted and true objects at IoU 0.5, over all sizes."""
    # evalImgs contains the images for each range of sizes, 'all' first; None for an image without objects.
    all_sizes = evaluation.evalImgs[: len(evaluation.params.imgIds)]
    images = [image for image in all_sizes if image is not None]
    matched = sum(int((image["dtMatches"][0] > 0).sum()) for image in images)
    return matched, sum(len(image["dtIds"]) for image in images), sum(len(image["gtIds"]) for image in images)


def _table(answers: Sequence[Answer], ids: dict[tuple[int, int], int], kind: str) -> COCO:
    """Return the objects of answers as a table of pycocotools. Numbers start at 1, because 0 means no match."""
    objects = [
        (ids[number, mark.image], annotation)
        for number, answer in enumerate(answers)
        for mark in answer.marks
        if (annotation := _annotation(mark, kind)) is not None
    ]
    sizes = {image: annotation["segmentation"]["size"] for image, annotation in objects if kind == "segm"}
    table = COCO()
    table.dataset = {
        "info": {},
        "images": [
            {"id": identifier, **dict(zip(("height", "width"), sizes.get(identifier, (0, 0)), strict=True))}
            for identifier in ids.values()
        ],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [
            {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "score": 1.0, **annotation}
            for number, (image, annotation) in enumerate(objects, start=1)
        ],
    }
    table.createIndex()
    return table


def _annotation(mark: Mark, kind: str) -> dict[str, Any] | None:
    """Return the geometry of a mark for an annotation; None if it has no box or no mask."""
    box = box_of(mark)
    if kind == "bbox" and box is not None:
        x1, y1, x2, y2 = box.corners
        return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area(box)}
    if kind == "segm" and mark.mask is not None and mark.mask.any():
        return {"segmentation": rle(mark.mask), "area": float(mark.mask.sum())}
    return None
