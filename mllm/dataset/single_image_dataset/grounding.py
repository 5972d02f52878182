"""Referring expressions: where something is, and what is there (Shikra, arXiv:2306.15195)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.base import ImageTextDataset
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS
from mllm.structures import BOX, IMAGE, POINT, Mark, Sample, Turn

Box = tuple[float, float, float, float]
OVERSHOOT = 1.0
"""Pixels by which a box may reach beyond its image, as rounding in some releases makes them; it is clipped."""


class GroundingDataset(ImageTextDataset):
    """Rows whose words stand in a sentence that is drawn from some templates, and whose places are marks.

    `template_string` is the one template, `template_file` a json list of them; without either, sentences of our own are
    taken. The same (seed, epoch, row) always draws the same one.
    """

    has_measures = False
    sentences: ClassVar[tuple[str, ...]] = ()
    """The templates, with `<expr>`, `<question>` or `<box>` where the row's own words or places stand."""
    image_suffix: ClassVar[str] = ".png"
    """Of the images that a miniature writes: what the dataset adds to the names in its rows, if it does."""
    group_field: ClassVar[str | None] = None

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        template_string: str | None = None,
        template_file: str | Path | None = None,
        transforms: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
        reader: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_path, image_folder, transforms, seed, reader)
        if template_string is not None and template_file is not None:
            raise ConfigError("template_string and template_file exclude each other: keep one")
        self.templates = self.sentences if template_string is None else (template_string,)
        if template_file is not None:
            self.templates = _templates(Path(template_file).expanduser())

    def sentence(self, rng: np.random.Generator, **words: str) -> str:
        """A drawn template with `<name>` replaced by the word of that name, in one pass."""
        template = self.templates[int(rng.integers(len(self.templates)))]
        return re.sub(r"<(\w+)>", lambda match: words.get(match[1], match[0]), template)

    def asked(self, question: str, places: Sequence[Sequence[int]] = ()) -> Turn:
        """A question about the image."""
        return Turn("user", f"{IMAGE} {question}", _groups(places))

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Phantoms with lesions in this dataset's own fields."""
        from mllm.dataset.phantoms.marked import write_marked_miniature

        return write_marked_miniature(folder, rows, cls.miniature_row, cls.image_suffix)

    @classmethod
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """A row of this dataset out of `image`, `expression`, `boxes`, `polygons`, `width` and `height`."""
        raise ConfigError(f"{cls.__name__} has no generated miniature: define miniature_row(cls, row)")


def _templates(path: Path) -> tuple[str, ...]:
    try:
        sentences = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"template_file {path} cannot be read: {error}") from error
    if not isinstance(sentences, list) or not sentences or not all(isinstance(one, str) for one in sentences):
        raise ConfigError(f"template_file {path} must hold a list of sentences")
    return tuple(sentence.replace("<boxes>", BOX).replace("<points>", POINT) for sentence in sentences)


def _groups(places: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(index) for index in group) for group in places)


def answered(text: str, places: Sequence[Sequence[int]] = ()) -> Turn:
    """An answer; `places` are the marks of each `<box>` and `<point>` in it."""
    return Turn("assistant", text, _groups(places))


def words(text: Any, field: str) -> str:
    """A row's own words; raises `DataError` where they hold a placeholder."""
    text = str(text).strip()
    for placeholder in (IMAGE, BOX, POINT):
        if placeholder in text:
            raise DataError(f"field '{field}' holds {placeholder}, which stands for something else here: remove it")
    return text


def box_in(image: Image, numbers: Any, field: str = "bbox", is_xywh: bool = False) -> Box:
    """A box x1 y1 x2 y2 in pixels, checked and clipped to its image; `is_xywh`: written as corner, width and height."""
    try:
        x1, y1, x2, y2 = (float(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise DataError(f"field '{field}' must hold four numbers, not {numbers!r}") from error
    if is_xywh:
        x2, y2 = x1 + x2, y1 + y2
    if not (x1 <= x2 and y1 <= y2):
        raise DataError(f"field '{field}' {[x1, y1, x2, y2]} has its corners reversed")
    width, height = image.size
    if min(x1, y1) < -OVERSHOOT or x2 > width + OVERSHOOT or y2 > height + OVERSHOOT:
        raise DataError(f"field '{field}' {[x1, y1, x2, y2]} reaches out of its image of {width} x {height} pixels")
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def boxes_in(image: Image, boxes: Any, field: str = "boxes") -> list[Mark]:
    """The marks of a list of boxes."""
    if not isinstance(boxes, (list, tuple)):
        raise DataError(f"field '{field}' must be a list of boxes")
    return [Mark(box=box_in(image, box, f"{field}[{number}]")) for number, box in enumerate(boxes)]


@DATASETS.register_module()
class RECDataset(GroundingDataset):
    """Where is what an expression refers to? Row: {"img_path", "expression", "bbox"}, bbox x1 y1 x2 y2 in pixels."""

    required = ("img_path", "expression", "bbox")
    sentences: ClassVar[tuple[str, ...]] = templates.REC

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_path"])
        question = self.sentence(rng, expr=words(row["expression"], "expression"))
        return Sample(
            turns=[self.asked(question), answered(f"Answer: {BOX} .", [[0]])],
            images=[image],
            marks=[Mark(box=box_in(image, row["bbox"]))],
        )

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """The largest lesion alone."""
        return {"img_path": row["image"], "expression": row["expression"], "bbox": row["boxes"][0]}


@DATASETS.register_module()
class REGDataset(RECDataset):
    """What is at a place, so that it can be told from others? The rows of `RECDataset`, asked the other way round."""

    sentences = templates.REG

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_path"])
        return Sample(
            turns=[self.asked(self.sentence(rng), [[0]]), answered(words(row["expression"], "expression"))],
            images=[image],
            marks=[Mark(box=box_in(image, row["bbox"]))],
        )


@DATASETS.register_module()
class GCDataset(REGDataset):
    """What does a place show? The rows of `RECDataset`; the expression is its caption."""

    sentences = templates.GC
