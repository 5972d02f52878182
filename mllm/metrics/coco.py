"""COCO's figures and its way to write a mask, both through pycocotools."""

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
from mllm.registry import METRICS
from mllm.structures import Answer, Mark

FIGURES = ("AP", "AP50", "AP75")
"""The first three of COCOeval's twelve."""


@METRICS.register_module(name="coco_ap")
def coco_ap(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """COCO's average precision of boxes and, where the references have masks, of masks: AP, AP50 and AP75.

    One class; at most 100 objects of an image count. An answer in words has no confidences, so every object has the
    score 1.0: AP then is no statement about ranking. pycocotools keeps equal scores in the order of the samples, and
    the curve that it integrates follows that order; `precision@0.5` and `recall@0.5` do not depend on it. A figure of
    a detector that ranks its boxes must not be compared with this one. Objects of different images are never paired.
    `failed` counts predictions without a readable object where there is one to find: their objects are missed.
    """
    assert len(predictions) == len(references)
    pairs = list(zip(predictions, references, strict=True))
    figures: dict[str, float] = {}
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        if name == "box" or any(mark.mask is not None for answer in references for mark in answer.marks):
            figures |= {f"{name}_{key}": value for key, value in _average_precision(pairs, kind).items()}
    wanted = [(found, reference) for found, reference in pairs if _has_object(reference)]
    figures["failed"] = sum(not _has_object(found) for found, _ in wanted)
    figures["samples"] = len(pairs)
    return figures


def rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask [H, W] as COCO's compressed run lengths: `{"size": [H, W], "counts": "..."}`."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(length) for length in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _has_object(answer: Answer) -> bool:
    return any(box_of(mark) is not None for mark in answer.marks)


def _average_precision(pairs: Sequence[tuple[Answer, Answer]], kind: str) -> dict[str, float]:
    """COCOeval's figures for 'bbox' or 'segm'; NaN where there is nothing to find."""
    images = [
        (number, image)
        for number, pair in enumerate(pairs)
        for image in sorted({0} | {mark.image for answer in pair for mark in answer.marks})
    ]
    ids = {place: identity for identity, place in enumerate(images, start=1)}
    with redirect_stdout(io.StringIO()):  # pycocotools prints tables
        truth, found = (_table([pair[side] for pair in pairs], ids, kind) for side in (1, 0))
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = {name: float(value) for name, value in zip(FIGURES, evaluation.stats, strict=False)}
    hits, objects, targets = _counts(evaluation)
    figures["precision@0.5"] = hits / objects if objects else float("nan")
    figures["recall@0.5"] = hits / targets if targets else float("nan")
    return {name: float("nan") if value < 0 else value for name, value in figures.items()}


def _counts(evaluation: COCOeval) -> tuple[int, int, int]:
    """At IoU 0.5 and over all sizes: objects that were found, that were named, and that there are."""
    # evalImgs holds the images of each range of sizes in turn, 'all' first; None where an image has no object.
    whole = evaluation.evalImgs[: len(evaluation.params.imgIds)]
    seen = [image for image in whole if image is not None]
    hits = sum(int((image["dtMatches"][0] > 0).sum()) for image in seen)
    return hits, sum(len(image["dtIds"]) for image in seen), sum(len(image["gtIds"]) for image in seen)


def _table(answers: Sequence[Answer], ids: dict[tuple[int, int], int], kind: str) -> COCO:
    """The answers' objects as pycocotools keeps annotations; their numbers begin with 1, because 0 means no match."""
    objects = [
        (ids[number, mark.image], described)
        for number, answer in enumerate(answers)
        for mark in answer.marks
        if (described := _annotation(mark, kind)) is not None
    ]
    sizes = {image: described["segmentation"]["size"] for image, described in objects if kind == "segm"}
    table = COCO()
    table.dataset = {
        "info": {},
        "images": [
            {"id": identity, **dict(zip(("height", "width"), sizes.get(identity, (0, 0)), strict=True))}
            for identity in ids.values()
        ],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [
            {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "score": 1.0, **described}
            for number, (image, described) in enumerate(objects, start=1)
        ],
    }
    table.createIndex()
    return table


def _annotation(mark: Mark, kind: str) -> dict[str, Any] | None:
    """A mark's own part of an annotation; None where it has no box or no mask."""
    box = box_of(mark)
    if kind == "bbox" and box is not None:
        x1, y1, x2, y2 = box.corners
        return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area(box)}
    if kind == "segm" and mark.mask is not None and mark.mask.any():
        return {"segmentation": rle(mark.mask), "area": float(mark.mask.sum())}
    return None
