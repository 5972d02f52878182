"""Datasets of referring expression segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.coco_masks import decode_polygons, decode_runs, inspect_polygons, inspect_runs
from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, is_list_of_boxes, place_turn, plain_text
from mllm.dataset.tables.refer import References
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS
from mllm.structures import Mark, Sample, UndecodedMask


@DATASETS.register_module()
class RESDataset(GroundingDataset):
    """Referring expression segmentation: from an expression to a mask.

    Row: {"img_path", "expression", "bbox", "segmentation"} in the format of PerceptionGPT: bbox by default as x y width
    height in pixels (`box`), segmentation as a list of polygons or as COCO run lengths, compressed or not. For several
    objects `bbox` is a list of boxes and `segmentation` a list with one of these for each box; empty lists mean that
    the image has none, and the answer is the word none.
    """

    required = ("img_path", "expression")
    optional = ("bbox", "segmentation")
    box = "xywh"
    default_templates = templates.RES

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_path"])
        question = self.draw_template(rng, expr=plain_text(row["expression"], "expression"))
        boxes, masks = self.parse_objects(image, row["bbox"]), row["segmentation"]
        masks = masks if is_list_of_boxes(row["bbox"]) else [masks]
        if not isinstance(masks, list) or len(masks) != len(boxes):
            raise DataError(f"field 'segmentation' must be a list of {len(boxes)} masks, one for each box in 'bbox'")
        marks = [self._mark(box, mask, image) for box, mask in zip(boxes, masks, strict=True)]
        return Sample([self.question_turn(question), place_turn(len(marks))], [image], marks=marks)

    def _mark(self, mark: Mark, segmentation: Any, image: Image) -> Mark:
        """Return the mark of a box with its mask, which is decoded if the images are."""
        if self.decodes:
            return replace(mark, mask=parse_mask(segmentation, image))
        return Mark(box=mark.box, undecoded=inspect_mask(segmentation, image))  # faster than `replace`

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row about the largest lesion."""
        x1, y1, x2, y2 = row["boxes"][0]
        return {
            "img_path": row["image"],
            "expression": row["expression"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": [row["polygons"][0]],
            "height": row["height"],
            "width": row["width"],
        }


def parse_mask(segmentation: Any, image: Image, field: str = "segmentation") -> np.ndarray:
    """Return the mask [H, W] of COCO polygons or run lengths; raises `DataError` for other formats or sizes."""
    with _errors_of_mask(field):
        is_runs = isinstance(segmentation, dict)
        mask = decode_runs(segmentation) if is_runs else decode_polygons(segmentation, *image.size)
    _check_size(field, (mask.shape[1], mask.shape[0]), image)
    return mask


def inspect_mask(segmentation: Any, image: Image, field: str = "segmentation") -> UndecodedMask:
    """Return the facts of the mask of COCO polygons or run lengths; raises as `parse_mask` does."""
    with _errors_of_mask(field):
        is_runs = isinstance(segmentation, dict)
        mask = inspect_runs(segmentation) if is_runs else inspect_polygons(segmentation, *image.size)
    _check_size(field, (mask.width, mask.height), image)
    return mask


@contextmanager
def _errors_of_mask(field: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise DataError(f"field '{field}' is neither a list of polygons nor COCO run lengths ({error})") from error


def _check_size(field: str, size: tuple[int, int], image: Image) -> None:
    """Raise `DataError` if a mask has another width or height than its image."""
    if size != image.size:
        width, height = image.size
        raise DataError(
            f"field '{field}' is a mask of {size[0]} x {size[1]} pixels, but its image has {width} x {height}"
        )


@DATASETS.register_module()
class ReferDataset(RESDataset):
    """RefCOCO, RefCOCO+ and RefCOCOg in their original file format; `data_path` is `refs(unc|google|umd).p`.

    `instances` is `instances.json` (default: in the folder of `data_path`), `split` one of train, val, test, testA,
    testB. For RefCOCOg use the umd split: its splits have no images in common. Images are those of COCO train2014. With
    `task='REC'` the answer has a box, with 'RES' also a mask.
    """

    has_columns = False
    patient_column = "img_path"

    def __init__(
        self,
        data_path: str,
        image_folder: str,
        instances: str | None = None,
        split: str = "train",
        task: str = "RES",
    ) -> None:
        if task not in ("REC", "RES"):
            raise ConfigError(f"ReferDataset: task must be 'REC' or 'RES', not {task!r}")
        self.instances, self.split = instances, split
        super().__init__(data_path, image_folder)
        self.task, self.templates = task, templates.REC if task == "REC" else self.default_templates

    @override
    def open_records(self, path: Path) -> References:
        refs = path.expanduser()
        instances = refs.with_name("instances.json") if self.instances is None else Path(self.instances).expanduser()
        return References(refs, instances, self.split)

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        sample = super().parse_drawn(row, rng)
        return sample if self.task == "RES" else replace(sample, marks=[Mark(box=mark.box) for mark in sample.marks])

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write phantoms with lesions in the original format."""
        from mllm.dataset.phantoms.marked import write_refer_miniature

        return write_refer_miniature(folder, rows)
