"""Base of datasets of labeled boxes, and the detection and the presence of objects."""

from __future__ import annotations

import logging
import pickle
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.annotations.files import default_image_folder, read_annotations
from mllm.dataset.annotations.objects import AnnotatedImage, AnnotatedImages, Annotations, EmptyBoxes
from mllm.dataset.indices import from_zero
from mllm.dataset.patient_names import PatientNames
from mllm.dataset.single_image_dataset.grounding import NONE, BoxForm, GroundingDataset, answer_turn, plain_text
from mllm.dataset.tables.records import ERROR, Records
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS
from mllm.structures import BOX, Mark, Sample

logger = logging.getLogger(__name__)

SIZE = "_annotated_size"
"""Field of a row with the width and height of the image that was annotated, or None."""
Labels = Sequence[str] | Mapping[str, str]
TRUTH_VALUES = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
    **dict.fromkeys(("0", "0.0", "false", "no"), False),
}
"""Texts of truth values, in lower case."""


class AnnotationRecords(Records):
    """Rows of annotated images, made when they are read, so that they take no memory.

    Args:
        path: File or folder of the annotations.
        images: The images.
        rows_of: Function that returns the rows of an image.

    Raises:
        DataError: There is no row.
    """

    def __init__(
        self, path: Path, images: AnnotatedImages, rows_of: Callable[[AnnotatedImage], list[dict[str, Any]]]
    ) -> None:
        self.path, self.images, self.rows_of = path, images, rows_of
        self.ends = array("q", accumulate(len(self._rows_of(image)) for image in images))
        """Number of rows up to the end of each image."""
        self._last: tuple[int, list[bytes]] = -1, []
        """Image whose rows were read last, and these rows, pickled, so that changes of what was read are not kept."""
        if not len(self):
            raise DataError(f"{path} has no row that can be used")

    def _rows_of(self, image: AnnotatedImage) -> list[dict[str, Any]]:
        return [{ERROR: image.error}] if image.error else self.rows_of(image)

    def _position(self, index: int) -> tuple[int, int]:
        """Return the image of a row, and the number of the row among those of the image."""
        index = from_zero(index, len(self))
        image = bisect_right(self.ends, index)
        return image, index - (self.ends[image - 1] if image else 0)

    def __len__(self) -> int:
        return self.ends[-1]

    @override
    def __getitem__(self, index: int) -> dict[str, Any]:
        image, number = self._position(index)
        if self._last[0] != image:
            rows = self._rows_of(self.images[image])
            self._last = image, [pickle.dumps(row, pickle.HIGHEST_PROTOCOL) for row in rows]
        row: dict[str, Any] = pickle.loads(self._last[1][number])
        if row.get(ERROR):
            raise DataError(row[ERROR])
        return row

    @override
    def describe(self, index: int) -> str:
        return self.images.location(self._position(index)[0])


class AnnotatedDataset(GroundingDataset):
    r"""Base of datasets that read labeled boxes of Pascal VOC or COCO, or the rows of a table.

    An image must have the size that its annotation names. For an image with a crowd of COCO there is no question about
    the boxes or the number of the label of the crowd, which is present.

    Args:
        data_path: Folder with the layout of Pascal VOC (`Annotations`, `ImageSets/Main`, `JPEGImages`), COCO file
            (`.json`), or table.
        image_folder: Folder of the images; None: `JPEGImages` of VOC, or the folder of the file.
        split: List of a VOC folder, such as 'train'; None: all annotations.
        labels: Labels that are used, or a dict from labels to the texts that stand for them, as in
            `dict(RBC="red blood cells")`; None: all labels. A row of a table with another label is refused.
        empty_boxes: 'refuse' images with a box without an area, or 'drop' such boxes.
        patient: Regular expression with one group that finds the patient in the name of an image, such as
            `r"(P\d+)_"`. None: a table has a column, and an image of VOC or COCO counts as a patient, so that no image
            is in two splits.
        options: Options of `GroundingDataset`.
    """

    required: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        split: str | None = None,
        labels: Labels | None = None,
        empty_boxes: EmptyBoxes = "refuse",
        patient: str | None = None,
        **options: Any,
    ) -> None:
        self.patients = PatientNames(patient)
        path = Path(data_path).expanduser()
        self.split, self.labels, self.empty_boxes = split, labels, empty_boxes
        self.annotations: Annotations | None = None
        super().__init__(path, default_image_folder(path) if image_folder is None else image_folder, **options)
        if self.annotations is not None and patient is None:
            self.patient_column = "image"

    @override
    def open_records(self, path: Path) -> Records:
        annotations = read_annotations(path, self.split, self.empty_boxes)
        if annotations is None:
            return Records(path)
        self.annotations, self.labels = annotations, annotations.names(self.labels)
        if annotations.images.repeated:
            count = annotations.images.repeated
            logger.warning("%s: %d boxes are equal to another box of their image and label", path, count)
        return AnnotationRecords(path, annotations.images, self.rows_of)

    @property
    @override
    def assumes_corners(self) -> bool:  # type: ignore[override]
        return self.annotations is None and super().assumes_corners

    @property
    @override
    def has_box_option(self) -> bool:
        return self.annotations is None  # VOC and COCO have one form

    @property
    @override
    def distinguishing(self) -> frozenset[str]:
        has_one_label = len(tuple(self.used_labels())) == 1
        return super().distinguishing if has_one_label else super().distinguishing | {"label"}

    @abstractmethod
    def rows_of(self, image: AnnotatedImage) -> list[dict[str, Any]]:
        """Return the rows of an annotated image."""

    def text_of_label(self, label: Any) -> str:
        """Return the text that stands for a label; raise `DataError` for a label that is not in `labels`."""
        text = plain_text(label, "label")
        if not self.labels:
            return text
        if text not in self.labels:
            raise DataError(f"label '{text}' is not in labels{hint(text, self.used_labels())}")
        return self.labels[text] if isinstance(self.labels, Mapping) else text

    def used_labels(self) -> Iterable[str]:
        """Return the labels that are used, in their order."""
        return tuple(self.labels or ())

    def answered(self, row: Mapping[str, Any], question: str, answer: str) -> Sample:
        """Return a question and its answer about the image of a row, or about several images in a list."""
        files = row["image"] if isinstance(row["image"], list) else [row["image"]]
        images = [self.read_image(file) for file in files]
        return Sample([self.question_about(images, question), answer_turn(answer)], images)

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        sample = self.parse_annotated(row, rng)
        if self.patients.pattern is None:
            return sample
        files = row["image"] if isinstance(row["image"], list) else [row["image"]]
        return replace(sample, group=self.patients.find(str(files[0])))

    @abstractmethod
    def parse_annotated(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        """Return the sample of a row, without the patient that the name of its image has."""

    @override
    def summary(self) -> dict[str, Any]:
        """Return the file, the number of rows, and for annotations their images, boxes and dropped boxes."""
        if self.annotations is None:
            return super().summary()
        counts = {"images": len(self.annotations.images), "boxes": self.annotations.counts()}
        images, others = self.annotations.images, {"dropped boxes without an area": self.annotations.dropped}
        if images.with_crowds:
            others["images with crowds, of which no boxes and counts are asked"] = images.with_crowds
        if images.repeated:
            others["boxes that occur twice in an image"] = images.repeated
        return {**super().summary(), **counts, **others}


@DATASETS.register_module()
class DetectionDataset(AnnotatedDataset):
    """Detection: the boxes of the objects of a class, or of all classes, in an image.

    A row of a table has `image`, `label` and `boxes`, a list of boxes in the form that `box` names; an empty list means
    that the image has none. The answer has the boxes from top to bottom, or the word none.

    Args:
        data_path, image_folder, options: See `AnnotatedDataset`.
        per: 'label': one question for each image and label. 'image': one question for an image with all labels, which
            needs VOC or COCO.
        absent: Ask for labels that an image does not have, too (`per='label'`).
        box: Form of the boxes of a table; see `GroundingDataset`.
    """

    optional: ClassVar[tuple[str, ...]] = ("label", "boxes")
    default_templates = templates.DETECTION

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        *,
        per: Literal["label", "image"] = "label",
        absent: bool = True,
        box: BoxForm | None = None,
        **options: Any,
    ) -> None:
        self.per, self.absent = per, absent
        super().__init__(data_path, image_folder, box=box, **options)
        if box is not None and self.annotations is not None:
            raise ConfigError(f"box='{box}' is for tables; {data_path} has the form of boxes of its format")
        if per == "image" and self.annotations is None:
            raise ConfigError("per='image' needs annotations of Pascal VOC or COCO; a row of a table has one label")

    @property
    @override
    def distinguishing(self) -> frozenset[str]:
        return super().distinguishing - {"label"} if self.per == "image" else super().distinguishing

    @override
    def rows_of(self, image: AnnotatedImage) -> list[dict[str, Any]]:
        boxes: dict[str, list[Sequence[float]]] = {label: [] for label in self.used_labels()}
        for item in image.objects:
            if item.label in boxes:
                boxes[item.label].append(item.box)
        row = {"image": image.image, SIZE: image.size}
        if self.per == "image":
            is_used = (self.absent or any(boxes.values())) and not image.crowds & boxes.keys()
            return [{**row, "objects": boxes}] if is_used else []
        return [
            {**row, "label": label, "boxes": items}
            for label, items in boxes.items()
            if (items or self.absent) and label not in image.crowds
        ]

    @override
    def parse_annotated(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        objects = row["objects"].items() if self.per == "image" else [(row["label"], row["boxes"])]
        image = self.read_image(row["image"])
        _check_size(image, row.get(SIZE))
        marks: list[Mark] = []
        texts, lines, groups = [], [], []
        for name, boxes in objects:
            own = self._sorted_marks(image, boxes)
            if own:
                groups.append(range(len(marks), len(marks) + len(own)))
            marks += own
            answer = BOX if own else NONE
            texts.append(self.text_of_label(name))
            lines.append(f"{texts[-1]}: {answer}" if self.per == "image" else answer)
        names = ", ".join(texts)
        question = self.question_turn(self.draw_template(rng, label=names))
        label = names if self.per == "label" else None
        return Sample([question, answer_turn("\n".join(lines), groups)], [image], marks=marks, label=label)

    def _sorted_marks(self, image: Image, boxes: Any) -> list[Mark]:
        """Return the marks of boxes from top to bottom and from left to right."""
        return sorted(self.parse_boxes(image, boxes), key=lambda mark: (mark.box or ())[1::-1])

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row about the lesions."""
        return {"image": row["image"], "label": "lesions", "boxes": row["boxes"]}


@DATASETS.register_module()
class PresenceDataset(AnnotatedDataset):
    """Presence of a class in an image: yes or no.

    A row of a table has `image`, `label` and `present` (yes or no, true or false, 1 or 0).
    """

    optional: ClassVar[tuple[str, ...]] = ("label", "present")
    default_templates = templates.PRESENCE

    @override
    def rows_of(self, image: AnnotatedImage) -> list[dict[str, Any]]:
        present = {item.label for item in image.objects} | image.crowds
        return [{"image": image.image, "label": label, "present": label in present} for label in self.used_labels()]

    @override
    def parse_annotated(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        question = self.draw_template(rng, label=self.text_of_label(row["label"]))
        answer = "yes" if truth_of(row["present"], "present") else "no"
        return self.answered(row, question, answer)

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row about the presence of several lesions."""
        return {"image": row["image"], "label": "several lesions", "present": len(row["boxes"]) > 1}


def _check_size(image: Image, size: tuple[int, int] | None) -> None:
    """Raise `DataError` if an image has another size than the one that was annotated."""
    if size is not None and size != image.size:
        fault = (
            f"has {image.width} x {image.height} pixels, but its boxes are those of {size[0]} x {size[1]} pixels: "
            "use the images that were annotated"
        )
        raise DataError(f"image {fault}", f"its image {fault}")


def truth_of(value: Any, field: str) -> bool:
    """Return the truth value of a field: true or false, 1 or 0, yes or no.

    Raises:
        DataError: The field has another value.
    """
    text = str(value).strip().lower()
    if text not in TRUTH_VALUES:
        raise DataError(f"field '{field}' must be yes or no, true or false, or 1 or 0, not {value!r}")
    return TRUTH_VALUES[text]
