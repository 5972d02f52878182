"""Datasets of referring expressions and their boxes (Shikra, arXiv:2306.15195)."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.base import ImageTextDataset
from mllm.dataset.tables.text_files import read_text
from mllm.dataset.tables.values import text_of
from mllm.errors import ConfigError, DataError, hint
from mllm.registry import DATASETS
from mllm.structures import BOX, IMAGE, POINT, Mark, Sample, Turn

NONE = "none"
"""Answer for an image without the object."""
Box = tuple[float, float, float, float]
BoxForm = Literal["xyxy", "xywh", "normalized"]
"""Numbers of a box: two corners in pixels, a corner with width and height in pixels, or corners as fractions."""
_FORMS = {
    "xyxy": "x1 y1 x2 y2 in pixels",
    "xywh": "x y width height in pixels",
    "normalized": "x1 y1 x2 y2 as fractions of the image",
}
_PLACEHOLDER = re.compile(r"<(\w+)>")
OVERSHOOT = 1.0
"""Pixels by which a box may exceed its image, because some releases round coordinates; such a box is clipped."""


class GroundingDataset(ImageTextDataset):
    """Base of datasets whose rows are inserted into a random template and have boxes, points or masks.

    `template_string` is one template, `template_file` a json list of templates; the default is `default_templates`.
    The template depends on (seed, epoch, row). `box` is the form of the boxes in the rows: 'xyxy' (x1 y1 x2 y2 in
    pixels), 'xywh' (x y width height in pixels) or 'normalized' (x1 y1 x2 y2 as fractions of the image).
    """

    has_measures = False
    assignable: ClassVar[tuple[str, ...]] = ("transforms", "seed", "reader", "patient_column", "columns", "box")
    box: BoxForm = "xyxy"
    default_templates: ClassVar[tuple[str, ...]] = ()
    """Templates with placeholders such as `<expr>`, `<question>`, `<box>` and `<label>`. Templates of a config may have
    the same placeholders, and must have those of `distinguishing` that every template here has."""
    other_templates: ClassVar[tuple[str, ...]] = ()
    """Templates of other options of the class, whose placeholders templates of a config may have as well."""
    image_suffix: ClassVar[str] = ".png"
    """Suffix of the images of a miniature; datasets that add a suffix to the names in their rows set it."""

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        template_string: str | None = None,
        template_file: str | Path | None = None,
        box: BoxForm | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_path, image_folder, **options)
        if box is not None:
            self.box = box
        if template_string is not None and template_file is not None:
            raise ConfigError("template_string and template_file exclude each other: keep one")
        self.templates = self.own_templates
        if template_string is not None:
            self.templates = self._checked((template_string,), "template_string")
        if template_file is not None:
            self.templates = self._checked(
                _templates(Path(template_file).expanduser()), f"template_file {template_file}"
            )

    def _checked(self, texts: Sequence[str], where: str) -> tuple[str, ...]:
        """Return templates of a config; raise `ConfigError` for a wrong placeholder, and for a missing one."""
        texts = tuple(text.replace("<boxes>", BOX).replace("<points>", POINT) for text in texts)
        own = [set(_PLACEHOLDER.findall(template)) for template in self.own_templates]
        known = set().union(*own, *map(_PLACEHOLDER.findall, self.other_templates))
        needed = set.intersection(*own) & self.distinguishing if own else set()
        for text in texts:
            names = _PLACEHOLDER.findall(text)
            if IMAGE in text:
                raise ConfigError(
                    f"{where}: '{text}' has {IMAGE}: remove it, because the image precedes every question"
                )
            for name in names:
                if name not in known and own:
                    raise ConfigError(f"{where}: '{text}' has the unknown placeholder '{name}'{hint(name, known)}")
            for name in sorted(needed - {*names}):
                end = ", unless labels has one label" if name == "label" else ""
                raise ConfigError(f"{where}: '{text}' has no <{name}>, without which the question is incomplete{end}")
        return texts

    @property
    def own_templates(self) -> tuple[str, ...]:
        """Templates of these options, if a config has none."""
        return self.default_templates

    @property
    def distinguishing(self) -> frozenset[str]:
        """Placeholders of what differs between the rows of a dataset."""
        return frozenset({"expr", "question", "box"})

    @property
    @override
    def assumes_corners(self) -> bool:  # type: ignore[override]
        return self.box == "xyxy" and "box" not in vars(self)  # an option is an attribute of the object

    @property
    def has_box_option(self) -> bool:
        """False if the form of the boxes is that of their file format, so that no option changes it."""
        return True

    def draw_template(self, rng: np.random.Generator, **values: str) -> str:
        """Return a random template with each `<name>` replaced by the value of that name, in one pass."""
        pieces = list(_pieces(self.templates[int(rng.integers(len(self.templates)))]))
        for place in range(1, len(pieces), 2):
            pieces[place] = values.get(pieces[place], f"<{pieces[place]}>")
        return "".join(pieces)

    def question_turn(self, question: str, groups: Sequence[Sequence[int]] = ()) -> Turn:
        """Return a question about the image; `groups` holds the mark indices of each `<box>` and `<point>` in it."""
        return Turn("user", f"{IMAGE} {question}", _groups(groups))

    def question_about(self, images: Sequence[Image], question: str) -> Turn:
        """Return a question about one or several images, which precede it."""
        return Turn("user", " ".join([*[IMAGE] * len(images), question]))

    def parse_box(self, image: Image, numbers: Any, field: str = "bbox") -> Box:
        """Return a box of a row; see the function `parse_box`."""
        return parse_box(image.size, numbers, field, self.box, self.has_box_option)

    def parse_boxes(self, image: Image, boxes: Any, field: str = "boxes") -> list[Mark]:
        """Return the marks of a list of boxes of a row."""
        if not isinstance(boxes, (list, tuple)):
            raise DataError(f"field '{field}' must be a list of boxes")
        if not boxes:
            return []
        size, form, option = image.size, self.box, self.has_box_option
        return [Mark(box=parse_box(size, box, f"{field}[{i}]", form, option)) for i, box in enumerate(boxes)]

    def parse_objects(self, image: Image, boxes: Any, field: str = "bbox") -> list[Mark]:
        """Return the marks of a box, or of a list of boxes, which is empty for an image without the object."""
        if is_list_of_boxes(boxes):
            return self.parse_boxes(image, boxes, field)
        return [Mark(box=self.parse_box(image, boxes, field))]

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write phantoms with lesions in the format of this dataset and return the arguments that read them."""
        from mllm.dataset.phantoms.marked import write_marked_miniature

        return write_marked_miniature(folder, rows, cls.miniature_row, cls.image_suffix)

    @classmethod
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row of this dataset for a row of `write_marked_miniature`."""
        raise ConfigError(f"{cls.__name__} has no generated miniature: define miniature_row(cls, row)")


@lru_cache(maxsize=1024)
def _pieces(template: str) -> tuple[str, ...]:
    """Return the texts of a template and between them the names of its placeholders."""
    return tuple(_PLACEHOLDER.split(template))


def _templates(path: Path) -> tuple[str, ...]:
    try:
        sentences = json.loads(read_text(path))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ConfigError(f"template_file {path} cannot be read: {error}") from error
    if not isinstance(sentences, list) or not sentences or not all(isinstance(sentence, str) for sentence in sentences):
        raise ConfigError(f"template_file {path} must contain a list of strings")
    return tuple(sentences)


def _groups(groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, group)) for group in groups)


def answer_turn(text: str, groups: Sequence[Sequence[int]] = ()) -> Turn:
    """Return an answer; `groups` holds the mark indices of each `<box>` and `<point>` in it."""
    return Turn("assistant", text, _groups(groups))


def is_list_of_boxes(boxes: Any) -> bool:
    """Return True for a list of boxes, also an empty one, and False for a single box."""
    return isinstance(boxes, (list, tuple)) and (not boxes or isinstance(boxes[0], (list, tuple)))


def place_turn(objects: int) -> Turn:
    """Return the answer with the places of the first marks of a sample, or with the word none for 0 objects."""
    return answer_turn(f"Answer: {BOX} .", [range(objects)]) if objects else answer_turn(f"Answer: {NONE} .")


def plain_text(text: Any, field: str) -> str:
    """Return a text of a row; raises `DataError` if it is empty, is not a text, or contains a placeholder."""
    return without_placeholders(text_of(text, field).strip(), field)


def without_placeholders(text: str, field: str) -> str:
    """Return the text; raises `DataError` if it contains a placeholder."""
    for placeholder in (IMAGE, BOX, POINT):
        if placeholder in text:
            raise DataError.without_values(
                f"field '{field}' contains the placeholder {placeholder}, which is reserved: remove it"
            )
    return text


def parse_box(
    size: tuple[int, int], numbers: Any, field: str = "bbox", form: BoxForm = "xyxy", has_option: bool = True
) -> Box:
    """Return a box x1 y1 x2 y2 in pixels, clipped to its image; raises `DataError` for an invalid box.

    Args:
        size: Width and height of the image in pixels.
        numbers: Four numbers.
        field: Name of the field, for messages.
        form: Form of the numbers.
        has_option: True: messages name the option that reads another form.
    """
    x1, y1, x2, y2 = four_numbers(numbers, field)
    width, height = size
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        fault = "has a number that is not finite"
        raise DataError(f"field '{field}' {[x1, y1, x2, y2]} {fault}", f"field '{field}' {fault}")
    if form == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    elif form == "normalized":
        if max(abs(x1), abs(y1), abs(x2), abs(y2)) > 1:
            fault = f"has a number above 1; this dataset reads {_FORMS[form]}"
            raise DataError(f"field '{field}' {[x1, y1, x2, y2]} {fault}", f"field '{field}' {fault}")
        x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    if 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height:
        return x1, y1, x2, y2
    if not (x1 <= x2 and y1 <= y2):
        end = _reads(form) if has_option else ""
        raise DataError(
            f"field '{field}' {[x1, y1, x2, y2]} has reversed corners{end}",
            f"field '{field}' has reversed corners{end}",
        )
    if min(x1, y1) < -OVERSHOOT or x2 > width + OVERSHOOT or y2 > height + OVERSHOOT:
        end = _reads(form) if has_option else ""
        raise DataError(
            f"field '{field}' {[x1, y1, x2, y2]} exceeds its image of {width} x {height} pixels{end}",
            f"field '{field}' exceeds its image{end}",
        )
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if x1 >= x2 or y1 >= y2:
        fault = "has no area in its image"
        raise DataError(f"field '{field}' {[x1, y1, x2, y2]} {fault}", f"field '{field}' {fault}")
    return x1, y1, x2, y2


def _reads(form: BoxForm) -> str:
    """Return the end of a message about a box that may have another form."""
    others = " or ".join(f"box='{name}'" for name in _FORMS if name != form)
    return f"; this dataset reads {_FORMS[form]} ({others} reads another form)"


def four_numbers(numbers: Any, field: str) -> Box:
    """Return the numbers of a box; raises `DataError` for anything else."""
    x1, y1, x2, y2 = numbers_in(numbers, 4, field)
    return x1, y1, x2, y2


def numbers_in(values: Any, count: int, field: str) -> list[float]:
    """Return the numbers of a list; raises `DataError` for another number of them, and for truth values."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    # A text is a sequence, too: '1234' is not the list [1, 2, 3, 4].
    if len(numbers) != count or isinstance(values, (str, bytes, Mapping)) or bool in map(type, values):
        if count == 4:
            reason = f"field '{field}' must contain four numbers"
            raise DataError(f"field '{field}' must contain four numbers, not {values!r}", reason)
        raise DataError(f"field '{field}' must contain two numbers, not {values!r}")
    return numbers


def index_group(value: Any, field: str) -> list[int]:
    """Return a list of indices of boxes; raises `DataError` for anything else, such as truth values and fractions."""
    if not isinstance(value, (list, tuple)) or any(type(index) is not int or index < 0 for index in value):
        reason = f"the boxes of field '{field}' must be lists of indices from 0"
        raise DataError(f"the boxes of field '{field}' must be lists of indices from 0, not {value!r}", reason)
    return list(value)


@DATASETS.register_module()
class RECDataset(GroundingDataset):
    """Referring expression comprehension: from an expression to a box.

    Row: {"img_path", "expression", "bbox"}; `box` is the form of the bbox, by default x1 y1 x2 y2 in pixels. `bbox` may
    be a list of boxes. For an empty list the answer is the word none.
    """

    required = ("img_path", "expression")
    optional = ("bbox",)
    default_templates: ClassVar[tuple[str, ...]] = templates.REC

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_path"])
        question = self.draw_template(rng, expr=plain_text(row["expression"], "expression"))
        marks = self.parse_objects(image, row["bbox"])
        return Sample([self.question_turn(question), place_turn(len(marks))], [image], marks=marks)

    @classmethod
    @override
    def miniature_row(cls, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row about the largest lesion."""
        return {"img_path": row["image"], "expression": row["expression"], "bbox": row["boxes"][0]}


@DATASETS.register_module()
class REGDataset(RECDataset):
    """Referring expression generation: from a box to an expression that identifies it, with rows of `RECDataset`."""

    default_templates = templates.REG

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["img_path"])
        marks = self.parse_objects(image, row["bbox"])
        if not marks:
            raise DataError("field 'bbox' has no box, which the question names")
        question = self.question_turn(self.draw_template(rng), [range(len(marks))])
        answer = answer_turn(plain_text(row["expression"], "expression"))
        return Sample([question, answer], [image], marks=marks)


@DATASETS.register_module()
class GCDataset(REGDataset):
    """Grounded captions: from a box to its caption, with rows of `RECDataset`."""

    default_templates = templates.GC
