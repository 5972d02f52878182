"""Referring expression segmentation: which pixels an expression refers to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from pycocotools import mask as coco_mask
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answered, box_in, words
from mllm.dataset.tables.refer import References
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS
from mllm.structures import BOX, Mark, Sample


@DATASETS.register_module()
class RESDataset(GroundingDataset):
    """Which pixels does an expression refer to?

    Row: {"img_path", "expression", "bbox", "segmentation"} as PerceptionGPT's, bbox as x y width height in pixels;
    the segmentation is a list of polygons, or COCO's run lengths, compressed or not.
    """

    required = ("img_path", "expression", "bbox", "segmentation")
    sentences = templates.RES

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_path"])
        question = self.sentence(rng, expr=words(row["expression"], "expression"))
        mark = Mark(box=box_in(image, row["bbox"], is_xywh=True), mask=mask_of(row["segmentation"], image))
        return Sample(turns=[self.asked(question), answered(f"Answer: {BOX} .", [[0]])], images=[image], marks=[mark])

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """The largest lesion's outline."""
        x1, y1, x2, y2 = row["boxes"][0]
        return {
            "img_path": row["image"],
            "expression": row["expression"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": [row["polygons"][0]],
            "height": row["height"],
            "width": row["width"],
        }


def mask_of(segmentation: Any, image: Image, field: str = "segmentation") -> np.ndarray:
    """The mask [H, W] of COCO's polygons or run lengths; raises `DataError` where it is neither or of another size."""
    width, height = image.size
    try:
        if isinstance(segmentation, dict):
            runs = segmentation
            if isinstance(runs["counts"], list):
                runs = coco_mask.frPyObjects(runs, *runs["size"])
        else:
            runs = coco_mask.merge(coco_mask.frPyObjects(_polygons(segmentation), height, width))
        mask: np.ndarray = coco_mask.decode(runs).astype(bool)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise DataError(f"field '{field}' is neither a list of polygons nor COCO's run lengths ({error})") from error
    if mask.shape != (height, width):
        raise DataError(
            f"field '{field}' is a mask of {mask.shape[1]} x {mask.shape[0]} pixels, its image has {width} x {height}"
        )
    return mask


def _polygons(segmentation: Any) -> list[list[float]]:
    """Polygons x y x y ... of three points at least; a single one may stand for itself."""
    polygons = segmentation if isinstance(segmentation[0], (list, tuple)) else [segmentation]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon needs three points, x and y each")
    return [[float(number) for number in polygon] for polygon in polygons]


@DATASETS.register_module()
class ReferDataset(RESDataset):
    """RefCOCO, RefCOCO+ and RefCOCOg in their original files: `data_path` is `refs(unc|google|umd).p`.

    `instances` is `instances.json` (beside it, if not given), `split` one of train, val, test, testA, testB. For
    RefCOCOg take the umd split, which shares no image between splits. Images are COCO's train2014. `task` REC asks for
    boxes alone, RES for masks too.
    """

    group_field = "img_path"

    def __init__(
        self,
        data_path: str,
        image_folder: str,
        instances: str | None = None,
        split: str = "train",
        task: str = "RES",
    ) -> None:
        if task not in ("REC", "RES"):
            raise ConfigError(f"ReferDataset: task is 'REC' or 'RES', not {task!r}")
        self.instances, self.split = instances, split
        super().__init__(data_path, image_folder)
        self.task, self.templates = task, templates.REC if task == "REC" else self.sentences

    @override
    def open_records(self, path: Path) -> References:
        refs = path.expanduser()
        instances = refs.with_name("instances.json") if self.instances is None else Path(self.instances).expanduser()
        return References(refs, instances, self.split)

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        sample = super().parse_drawn(row, rng)
        return sample if self.task == "RES" else replace(sample, marks=[Mark(box=mark.box) for mark in sample.marks])
