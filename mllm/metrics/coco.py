"""Average precision and mask encoding of COCO, computed by pycocotools."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mllm.metrics.areas import area, box_of
from mllm.metrics.base import StreamingMetric, reads
from mllm.registry import METRICS
from mllm.structures import Answer, Mark

THRESHOLDS = (0.5, 0.75)
"""Thresholds of IoU with a figure of their own."""
KINDS = {"box": "bbox", "mask": "segm"}
"""Name in the figures -> name in pycocotools."""


@METRICS.register_module(name="coco_ap")
@reads("box")
class CocoAP(StreamingMetric):
    """Average precision of COCO for boxes and, if the references have masks, for masks.

    There is one class, with at most 100 objects per image. pycocotools matches the objects; precision and recall of
    bootstrap samples are accumulated as in its `COCOeval.accumulate`, where an image that was drawn twice is two
    images. An answer in text has no confidences, so every object has the score 1.0, and AP does not measure ranking:
    equal scores keep the order of the samples, on which the precision-recall curve depends. Do not compare it with the
    AP of a detector that ranks its boxes. `precision@0.5` and `recall@0.5` do not depend on the order. Objects of
    different images are never matched.

    Figures: `box_AP`, `box_AP50`, `box_AP75`, `box_precision@0.5`, `box_recall@0.5`, the same for `mask_`, `failed`
    (predictions without an object where the reference has one) and `samples`.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[Answer, Answer]] = []
        self._matches: dict[str, Matches] | None = None

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Keep the objects of one sample."""
        self._pairs.append((prediction, reference))
        self._matches = None

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, N] of the samples, which are whole numbers."""
        if self._matches is None:
            has_masks = any(mark.mask is not None for _, reference in self._pairs for mark in reference.marks)
            names = [name for name in KINDS if name == "box" or has_masks]
            self._matches = {name: _matched(self._pairs, KINDS[name]) for name in names}
        figures: dict[str, np.ndarray] = {}
        for name, matches in self._matches.items():
            rows = [matches.figures(row) for row in weights.astype(int)]
            figures |= {f"{name}_{key}": np.array([row[key] for row in rows]) for key in rows[0]}
        return figures

    def counts(self) -> dict[str, float]:
        """Return the numbers of predictions without an object where the reference has one, and of samples."""
        failed = sum(_has_object(reference) and not _has_object(prediction) for prediction, reference in self._pairs)
        return {"failed": failed, "samples": len(self._pairs)}


@dataclass(frozen=True)
class Matches:
    """Objects of the images of a split, as pycocotools matches them. I images have objects; D objects are predicted."""

    samples: np.ndarray
    """Sample of each image, [I]."""
    counts: np.ndarray
    """Number of predicted objects of each image, [I]."""
    true: np.ndarray
    """Number of true objects of each image, [I]."""
    matched: np.ndarray
    """True where a predicted object has a match at a threshold of IoU, [T, D], in the order of the images."""
    thresholds: np.ndarray
    """Thresholds of IoU, [T]."""
    recalls: np.ndarray
    """Recalls at which precision is read, [101]."""

    def figures(self, weights: np.ndarray) -> dict[str, float]:
        """Return the figures for the number of copies of each sample, [N]; NaN where a figure is undefined."""
        copies = weights[self.samples]
        images = np.repeat(np.arange(len(copies)), copies)
        counts, starts = self.counts[images], (self.counts.cumsum() - self.counts)[images]
        # Number of each object: the start of its image and its position in it.
        objects = np.repeat(starts - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
        matched, true = self.matched[:, objects], int(self.true[images].sum())
        hits = matched.cumsum(axis=1)
        average = np.array([self._average_precision(row, true) for row in hits])
        true_positives = int(matched[0].sum())
        figures = {"AP": float(average.mean())}
        figures |= {f"AP{round(100 * t)}": float(average[np.argmin(np.abs(self.thresholds - t))]) for t in THRESHOLDS}
        figures["precision@0.5"] = true_positives / len(objects) if len(objects) else math.nan
        figures["recall@0.5"] = true_positives / true if true else math.nan
        return figures

    def _average_precision(self, hits: np.ndarray, true: int) -> float:
        """Return the mean precision at `recalls` for the numbers of hits among the first 1, 2, ... objects, [D]."""
        if not true:
            return math.nan
        precision = hits / (np.arange(1, len(hits) + 1) + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]  # the largest one at this recall or a higher one
        positions = np.searchsorted(hits / true, self.recalls, side="left")
        return float(np.append(precision, 0.0)[positions].mean())


def rle(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask [H, W] as compressed run lengths of COCO: `{"size": [H, W], "counts": "..."}`."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(length) for length in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _has_object(answer: Answer) -> bool:
    return any(box_of(mark) is not None for mark in answer.marks)


def _matched(pairs: Sequence[tuple[Answer, Answer]], kind: str) -> Matches:
    """Return the matches of COCOeval for 'bbox' or 'segm'."""
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
    # evalImgs contains the images for each range of sizes, 'all' first; None for an image without objects.
    numbered = zip(images, evaluation.evalImgs, strict=False)
    parts = [(number, part) for (number, _), part in numbered if part is not None]
    thresholds = evaluation.params.iouThrs
    matched = [part["dtMatches"] > 0 for _, part in parts]
    return Matches(
        samples=np.array([number for number, _ in parts], int),
        counts=np.array([len(part["dtIds"]) for _, part in parts], int),
        true=np.array([len(part["gtIds"]) for _, part in parts], int),
        matched=np.concatenate(matched, axis=1) if matched else np.zeros((len(thresholds), 0), bool),
        thresholds=thresholds,
        recalls=evaluation.params.recThrs,
    )


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
