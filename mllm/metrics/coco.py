"""Average precision and mask encoding of COCO, computed by pycocotools."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mllm.metrics.areas import area, box_of
from mllm.metrics.base import PartedMetric, computed_once, reads
from mllm.registry import METRICS
from mllm.structures import Answer, Mark

THRESHOLDS = (0.5, 0.75)
"""Thresholds of IoU with a figure of their own."""
KINDS = {"box": "bbox", "mask": "segm"}
"""Name in the figures -> name in pycocotools."""
IOUS = np.linspace(0.5, 0.95, 10)
"""Thresholds of IoU of pycocotools."""
RECALLS = np.linspace(0, 1, 101)
"""Recalls of pycocotools at which precision is read."""
BLOCK = 500
"""Number of samples whose objects are matched together."""
CELLS = 262_144
"""Number of weights of a block of objects that is computed at once."""
Object = tuple[int, dict[str, dict[str, Any] | None]]
"""Image of an object, and its annotations: name in pycocotools -> geometry, None if it has none."""


class Matches(NamedTuple):
    """Objects of some samples, as pycocotools matches them: D predicted objects of N samples."""

    samples: np.ndarray
    """Sample of each predicted object in the order of the samples, [D]."""
    hits: np.ndarray
    """Bits of each predicted object: bit n is set if it has a match at threshold n of `IOUS`, [D]."""
    true: np.ndarray
    """Number of true objects of each sample, [N]."""


NO_MATCHES = Matches(np.zeros(0, np.int32), np.zeros(0, np.uint16), np.zeros(0, np.int32))
"""Matches of no sample."""


@METRICS.register_module(name="coco_ap")
@reads("box")
class CocoAP(PartedMetric):
    """Average precision of COCO for boxes and, if the references have masks, for masks.

    There is one class, with at most 100 objects per image. pycocotools matches the objects; precision and recall of
    bootstrap samples are accumulated as in its `COCOeval.accumulate`, where an object of an image that was drawn twice
    is two objects that follow each other. An answer in text has no confidences, so every object has the score 1.0, and
    AP does not measure ranking: equal scores keep the order of the samples, on which the precision-recall curve
    depends. Do not compare it with the AP of a detector that ranks its boxes. `precision@0.5` and `recall@0.5` do not
    depend on the order. Objects of different images are never matched.

    Figures: `box_AP`, `box_AP50`, `box_AP75`, `box_precision@0.5`, `box_recall@0.5`, the same for `mask_`, `failed`
    (predictions without an object where the reference has one) and `samples`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed = 0
        """Number of predictions without an object where the reference has one."""
        self._has_masks = False
        self._matched = 0
        """Number of answers of the part whose objects are matched."""
        self.forget()

    def add(self, prediction: Answer, reference: Answer) -> None:
        """Read the objects of one sample."""
        self.failed += _has_object(reference) and not _has_object(prediction)
        self._has_masks |= any(mark.mask is not None for mark in reference.marks)
        self._pairs.append((_objects(prediction), _objects(reference)))
        if len(self._pairs) == BLOCK:
            self._match()

    def pending(self) -> int:
        """Return the number of answers that are kept."""
        return self._matched + len(self._pairs)

    def kept(self) -> dict[str, Matches]:
        """Return the matches of the answers that are kept, 'box' and 'mask' -> matches."""
        self._match()
        return {
            name: Matches(*(np.concatenate(column) for column in zip(*parts, strict=True)))
            for name, parts in self._matches.items()
        }

    def forget(self) -> None:
        """Forget the answers that are kept."""
        self._pairs: list[tuple[list[Object], list[Object]]] = []
        self._matches: dict[str, list[Matches]] = {name: [NO_MATCHES] for name in KINDS}
        self._matched = 0

    def _match(self) -> None:
        """Replace objects by their matches."""
        for name, matches in self._matches.items():
            own = matches_of(self._pairs, KINDS[name])
            matches.append(Matches(own.samples + self._matched, own.hits, own.true))
        self._matched += len(self._pairs)
        self._pairs = []

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] for the weights [R, U] of the units, which are whole numbers."""
        figures: dict[str, np.ndarray] = {}
        for name in KINDS if self._has_masks else ("box",):
            own = self._of_kind(name, np.ascontiguousarray(weights.T))
            figures |= {f"{name}_{key}": values for key, values in own.items()}
        return figures

    def _of_kind(self, name: str, by_unit: np.ndarray) -> dict[str, np.ndarray]:
        """Return the figures [R] of boxes or masks for the weights [U, R] of the units."""
        objects, true, *hits = (sums @ by_unit for sums in self.sums()[name])
        curves = [Curve(count, true) for count in hits]
        ends = objects.copy()
        step = max(1, CELLS // by_unit.shape[1])
        for units, parts in self.parts(is_reversed=True):
            part = parts[name]
            for start in reversed(range(0, len(part.samples), step)):
                drawn = by_unit[units[part.samples[start : start + step]]]
                counts = np.cumsum(drawn, axis=0)
                ends = ends - counts[-1]  # those of the objects before this block
                counts += ends
                for number, curve in enumerate(curves):
                    is_hit = (part.hits[start : start + step] >> number & 1).astype(bool)
                    if is_hit.any():
                        curve.read(drawn[is_hit], counts[is_hit])
        average = [curve.average() for curve in curves]
        figures = {"AP": np.mean(average, axis=0)}
        figures |= {f"AP{round(100 * t)}": average[int(np.argmin(np.abs(IOUS - t)))] for t in THRESHOLDS}
        with np.errstate(divide="ignore", invalid="ignore"):
            return figures | {"precision@0.5": hits[0] / objects, "recall@0.5": hits[0] / true}

    @computed_once
    def sums(self) -> dict[str, np.ndarray]:
        """Return the numbers of predicted and of true objects and of matches at each IoU by unit, [12, U], by kind."""
        sums = {name: np.zeros((2 + len(IOUS), self.units)) for name in KINDS}
        for units, parts in self.parts():
            for name, part in parts.items():
                owners = units[part.samples]
                columns = [np.ones(len(owners)), *((part.hits >> number & 1) for number in range(len(IOUS)))]
                for row, values in zip((0, *range(2, 2 + len(IOUS))), columns, strict=True):
                    sums[name][row] += np.bincount(owners, values, self.units)
                sums[name][1] += np.bincount(units, part.true, self.units)
        return sums

    def counts(self) -> dict[str, float]:
        """Return the numbers of predictions without an object where the reference has one, and of samples."""
        return {"failed": self.failed, "samples": len(self)}


class Curve:
    """Precision at the recalls of COCO, of objects that are read from the last one to the first one.

    Args:
        hits: Number of matched objects, [R].
        true: Number of true objects, [R].
    """

    def __init__(self, hits: np.ndarray, true: np.ndarray) -> None:
        self._hits, self._true = hits, true
        self._best, self._sum = np.zeros(len(hits)), np.zeros(len(hits))

    def read(self, drawn: np.ndarray, counts: np.ndarray) -> None:
        """Read the matched objects of a block, whose objects all follow in the order of the samples.

        Args:
            drawn: Number of times that each object was drawn, [H, R].
            counts: Number of objects up to each one, [H, R].
        """
        hits = np.cumsum(drawn, axis=0)
        before = self._hits - hits[-1]
        hits += before
        precision = hits / (counts + np.spacing(1))
        np.maximum(precision[-1], self._best, out=precision[-1])
        # The largest precision at this recall or a higher one. Only a matched object can have it.
        largest = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = before / self._true, self._hits / self._true
            recalls, columns = np.nonzero((RECALLS[:, None] > low) & (RECALLS[:, None] <= high))
            if len(columns):
                places = (hits[:, columns] / self._true[columns] >= RECALLS[recalls]).argmax(axis=0)
                np.add.at(self._sum, columns, largest[places, columns])
        self._best, self._hits = largest[0].copy(), before

    def average(self) -> np.ndarray:
        """Return the average precision, [R]; NaN without a true object."""
        at_zero = self._best  # recall 0
        return np.where(self._true > 0, (self._sum + at_zero) / len(RECALLS), np.nan)


def rle(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask [H, W] as compressed run lengths of COCO: `{"size": [H, W], "counts": "..."}`."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(length) for length in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _has_object(answer: Answer) -> bool:
    return any(box_of(mark) is not None for mark in answer.marks)


def _objects(answer: Answer) -> list[Object]:
    """Return the image of each mark of an answer and its geometry, by kind."""
    return [(mark.image, {kind: _annotation(mark, kind) for kind in KINDS.values()}) for mark in answer.marks]


def matches_of(pairs: Sequence[tuple[Sequence[Object], Sequence[Object]]], kind: str) -> Matches:
    """Return the matches of COCOeval for 'bbox' or 'segm'.

    Args:
        pairs: Objects of the answer and the reference of each sample.
        kind: Kind of geometry.
    """
    if not any(geometry[kind] for pair in pairs for objects in pair for _, geometry in objects):
        return Matches(*NO_MATCHES[:2], np.zeros(len(pairs), np.int32))
    images = [
        (number, image)
        for number, pair in enumerate(pairs)
        for image in sorted({0} | {image for objects in pair for image, _ in objects})
    ]
    ids = {image: identifier for identifier, image in enumerate(images, start=1)}
    with redirect_stdout(io.StringIO()):  # pycocotools prints tables
        targets, predictions = (_table([pair[i] for pair in pairs], ids, kind) for i in (1, 0))
        evaluation = COCOeval(targets, predictions, kind)
        evaluation.evaluate()
    assert (evaluation.params.iouThrs == IOUS).all() and (evaluation.params.recThrs == RECALLS).all()
    # evalImgs contains the images for each range of sizes, 'all' first; None for an image without objects.
    numbered = zip(images, evaluation.evalImgs, strict=False)
    parts = [(number, part) for (number, _), part in numbered if part is not None]
    true = np.zeros(len(pairs), np.int32)
    np.add.at(true, [number for number, _ in parts], [len(part["gtIds"]) for _, part in parts])
    matched = np.concatenate([part["dtMatches"] > 0 for _, part in parts], axis=1)
    bits = (matched.astype(np.uint16) << np.arange(len(IOUS), dtype=np.uint16)[:, None]).sum(axis=0, dtype=np.uint16)
    return Matches(np.repeat([number for number, _ in parts], [len(part["dtIds"]) for _, part in parts]), bits, true)


def _table(answers: Sequence[Sequence[Object]], ids: dict[tuple[int, int], int], kind: str) -> COCO:
    """Return the objects of answers as a table of pycocotools. Numbers start at 1, because 0 means no match."""
    objects = [
        (ids[number, image], annotation)
        for number, answer in enumerate(answers)
        for image, geometry in answer
        if (annotation := geometry[kind]) is not None
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
