"""Datasets of numbers: counts of objects, and measurements."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.annotations.objects import AnnotatedImage
from mllm.dataset.single_image_dataset.grounding import GroundingDataset, answer_turn
from mllm.dataset.tables.values import is_empty, number_in
from mllm.dataset.tasks.annotated import AnnotatedDataset
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS
from mllm.structures import Sample

VIEW = "image"
"""Name under which a measure head reads the only image of a sample: `RegressionHead(views=["image"])`."""


@DATASETS.register_module()
class CountingDataset(AnnotatedDataset):
    """Number of objects of a class in an image, as an integer.

    A row of a table has `image`, `count` and `label`. If `labels` has one label, rows need none.

    Args:
        data_path, image_folder, options: See `AnnotatedDataset`.
        measure: Name of the measure that a regression head learns, which needs one label in `labels`; its views are
            `["image"]`. None: the answer is text alone.
    """

    optional: ClassVar[tuple[str, ...]] = ("label", "count")
    has_measures = True
    default_templates = templates.COUNT

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        *,
        measure: str | None = None,
        **options: Any,
    ) -> None:
        self.measure = measure
        super().__init__(data_path, image_folder, **options)
        if measure is not None and len(names := list(self.used_labels())) != 1:
            raise ConfigError(
                f"measure='{measure}' is the count of one label, and labels has {len(names)}: set labels to one label"
            )

    @override
    def rows_of(self, image: AnnotatedImage) -> list[dict[str, Any]]:
        counts = Counter(item.label for item in image.objects)
        labels = [label for label in self.used_labels() if label not in image.crowds]  # a crowd is not counted
        return [{"image": image.image, "label": label, "count": counts[label]} for label in labels]

    @override
    def parse_annotated(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        labels = list(self.used_labels())
        label = row.get("label")
        if is_empty(label) and len(labels) == 1:
            label = labels[0]
        question = self.draw_template(rng, label=self.text_of_label(label))
        count = number_of(row["count"], "count")
        if count < 0 or not count.is_integer():
            raise DataError(f"field 'count' must be an integer of at least 0, not {row['count']!r}")
        sample = self.answered(row, question, str(int(count)))
        return sample if self.measure is None else replace(sample, measures={self.measure: count}, views=[VIEW])

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row about the number of lesions."""
        return {"image": row["image"], "label": "lesions", "count": len(row["boxes"])}


@DATASETS.register_module()
class RegressionDataset(GroundingDataset):
    """Measurement in an image, as a number with its unit.

    A row has `image` and `value`, a number in `unit`; `columns=dict(value="bone_age")` names another column.

    Args:
        data_path: A table; see `Records`.
        image_folder: Folder of the images; None: that of the table.
        label: Text that stands for the measurement in questions.
        unit: Unit after the number. Empty: none.
        decimals: Digits after the decimal point in answers.
        minimum: Smallest possible value. Rows with a smaller one are refused. None: no bound.
        maximum: Largest possible value.
        measure: Name of the measure that a regression head learns; its views are `["image"]`. None: the answer is text
            alone.
        options: Options of `GroundingDataset`.
    """

    has_measures = True
    required: ClassVar[tuple[str, ...]] = ("image", "value")
    default_templates = templates.MEASUREMENT

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        label: str = "value",
        unit: str = "",
        decimals: int = 1,
        minimum: float | None = None,
        maximum: float | None = None,
        measure: str | None = None,
        **options: Any,
    ) -> None:
        if decimals < 0:
            raise ConfigError(f"decimals must be at least 0, not {decimals}")
        if minimum is not None and maximum is not None and minimum > maximum:
            raise ConfigError(f"minimum {minimum:g} is above maximum {maximum:g}")
        self.label, self.unit, self.decimals, self.measure = label, unit, decimals, measure
        self.minimum = -math.inf if minimum is None else minimum
        self.maximum = math.inf if maximum is None else maximum
        super().__init__(data_path, image_folder, **options)

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        value = number_of(row["value"], "value")
        if not self.minimum <= value <= self.maximum:
            bound = (
                f"below the minimum of {self.minimum:g}"
                if value < self.minimum
                else (f"above the maximum of {self.maximum:g}")
            )
            after = f" {self.unit}".rstrip()
            raise DataError(f"field 'value' is {value:g}{after}, {bound}{after}")
        unit = f" in {self.unit}" if self.unit else ""
        question = self.draw_template(rng, label=self.label, unit=unit)
        answer = f"{value:.{self.decimals}f} {self.unit}".strip()
        sample = Sample([self.question_turn(question), answer_turn(answer)], [self.read_image(row["image"])])
        return sample if self.measure is None else replace(sample, measures={self.measure: value}, views=[VIEW])

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row with the width of the largest lesion in pixels."""
        x1, _, x2, _ = row["boxes"][0]
        return {"image": row["image"], "value": x2 - x1}


def number_of(value: Any, field: str) -> float:
    """Return a finite number of a row, also one that is written as text.

    Raises:
        DataError: The field has no finite number.
    """
    number = number_in(value)
    if not math.isfinite(number):
        raise DataError(f"field '{field}' must be a number, not {value!r}")
    return number
