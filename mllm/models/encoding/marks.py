"""Conversion of boxes, masks and points to text and tensors, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mllm.errors import ConfigError, DataError
from mllm.models.encoding.box_formats import BoxFormat, NormalizedText, Numbers
from mllm.models.encoding.padding import joined_objects
from mllm.structures import BOX, POINT, Encoded, Frame, Mark, Sample, Turn

Color = tuple[int, int, int]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Object:
    """A mark with its own token in the conversation."""

    mark: Mark
    box: Numbers | None
    """x1 y1 x2 y2 as fractions of the frame. None: the mask is empty."""
    supervised: bool
    """True in an assistant turn."""


class MarkWriter:
    """Conversion of marks to the text and tensors of a model.

    `pad_to_square` pads every image to a square of the color `background` first. None: the encoder uses the mean color
    of the image processor. `has_heads`: objects are passed to the model as tensors. None: if the format needs it.
    `mask_size` is the side in pixels of the masks of the model's mask head. None: there is no mask head.
    """

    def __init__(
        self,
        box_format: BoxFormat | None = None,
        *,
        pad_to_square: bool = False,
        has_heads: bool | None = None,
        mask_size: int | None = None,
        background: Color | None = None,
    ) -> None:
        self.box_format = NormalizedText() if box_format is None else box_format
        self.has_heads = self.box_format.needs_heads if has_heads is None else has_heads
        if self.box_format.needs_heads and not self.has_heads:
            raise ConfigError(f"box_format {type(self.box_format).__name__} needs heads: set model_args.heads")
        assert self.has_heads or mask_size is None, "a mask head is a head"
        self.pad_to_square, self.mask_size, self.background = pad_to_square, mask_size, background

    def with_background(self, background: Color) -> MarkWriter:
        """Return a copy with another color of the padding."""
        writer = copy(self)
        writer.background = background
        return writer

    def prepare(self, sample: Sample) -> tuple[Sample, tuple[Frame, ...], list[Object]]:
        """Return the sample for template and processor, one frame per image, and the objects in order.

        Raise `DataError` if placeholders and marks do not match.
        """
        frames = self.frames(sample)
        images = [self._padded(image, frame) for image, frame in zip(sample.images, frames, strict=True)]
        turns, objects = self.write(sample, sample.turns, frames)
        return replace(sample, turns=turns, images=images), frames, objects

    def frames(self, sample: Sample) -> tuple[Frame, ...]:
        """Return the frame of each image of a sample."""
        return tuple(self._frame(*image.size) for image in sample.images)

    def _frame(self, width: int, height: int) -> Frame:
        if not self.pad_to_square or width == height:
            return Frame(width, height)
        side = max(width, height)
        return Frame(width, height, (side - width) // 2, (side - height) // 2, side, side)

    def _padded(self, image: Image.Image, frame: Frame) -> Image.Image:
        if frame.size == image.size:
            return image
        square = Image.new("RGB", frame.size, self.background or (0, 0, 0))
        square.paste(image.convert("RGB"), (frame.left, frame.top))
        return square

    def write(self, sample: Sample, turns: Sequence[Turn], frames: Sequence[Frame]) -> tuple[list[Turn], list[Object]]:
        """Return turns with their placeholders replaced by the text of the marks, and the objects in order."""
        result: list[Turn] = []
        objects: list[Object] = []
        for turn in turns:
            # Parts with odd indices are the placeholders.
            parts = re.split(f"({BOX}|{POINT})", turn.text) if turn.marks else [turn.text]
            if len(parts) // 2 != len(turn.marks):
                raise DataError.at(
                    source_of(sample),
                    f"the text has {len(parts) // 2} {BOX} and {POINT} placeholders for "
                    f"{len(turn.marks)} groups of marks",
                )
            for number, group in enumerate(turn.marks):
                part, marks = 2 * number + 1, [_checked_mark(sample, index) for index in group]
                if parts[part] == POINT:
                    parts[part] = self._points(sample, marks, frames)
                    continue
                group_objects = self._boxes(sample, marks, frames, turn.role == "assistant")
                parts[part] = self.box_format.write_boxes([item.box or (0.0,) * 4 for item in group_objects])
                objects += group_objects if self.box_format.needs_heads else []
            result.append(replace(turn, text="".join(parts), marks=()))
        return result, objects

    def _points(self, sample: Sample, marks: Sequence[Mark], frames: Sequence[Frame]) -> str:
        if self.box_format.needs_heads:
            raise DataError.at(source_of(sample), f"heads decode boxes and masks only, but the text has a {POINT}")
        points = []
        for mark in marks:
            if mark.point is None:
                raise DataError.at(source_of(sample), f"{POINT} refers to a mark without a point")
            points.append(_fractions(mark.point, frames[mark.image], sample))
        return self.box_format.write_points(points)

    def _boxes(self, sample: Sample, marks: Sequence[Mark], frames: Sequence[Frame], supervised: bool) -> list[Object]:
        objects = []
        for mark in marks:
            if mark.box is None and mark.mask is None:
                raise DataError.at(source_of(sample), f"{BOX} refers to a mark without a box and a mask")
            box = tight_box(mark)
            # An empty mask is a valid target of a mask head, but there is no box around it.
            if box is not None or (self.box_format.needs_heads and self.mask_size is not None):
                box_fractions = None if box is None else _fractions(box, frames[mark.image], sample)
                objects.append(Object(mark, box_fractions, supervised))
        return objects

    def tensors(self, objects: Sequence[Object], frames: Sequence[Frame], positions: Tensor) -> tuple[Tensors, Tensors]:
        """Return the tensors of M >= 1 objects with tokens at `positions` [M], for the model and for the objectives."""
        if not self.has_heads:
            return {}, {}
        assert len(objects) == len(positions), "the number of object tokens changed in template or tokenizer"
        count = max(1, len(objects))
        student = {
            "object_positions": torch.full((count,), -1),
            "object_boxes": torch.zeros(count, 4),
            "object_has_box": torch.zeros(count, dtype=torch.bool),
            "object_images": torch.zeros(count, dtype=torch.long),
        }
        if self.mask_size is not None:
            student["object_masks"] = torch.zeros(count, self.mask_size, self.mask_size, dtype=torch.bool)
            student["object_has_mask"] = torch.zeros(count, dtype=torch.bool)
        supervised = torch.zeros(count, dtype=torch.bool)
        for i, item in enumerate(objects):
            student["object_positions"][i], supervised[i] = positions[i], item.supervised
            student["object_images"][i] = item.mark.image
            if item.box is not None:
                student["object_boxes"][i] = torch.tensor(item.box)
                student["object_has_box"][i] = True
            if self.mask_size is not None and item.mark.mask is not None:
                student["object_masks"][i] = resized_mask(item.mark.mask, frames[item.mark.image], self.mask_size)
                student["object_has_mask"][i] = True
        targets = {"boxes": student["object_boxes"], "boxes_known": student["object_has_box"] & supervised}
        if self.mask_size is not None:
            targets["masks"] = student["object_masks"]
            targets["masks_known"] = student["object_has_mask"] & supervised
        return student, targets

    def cut(self, student: Tensors, targets: Tensors, length: int) -> tuple[Tensors, Tensors]:
        """Return the tensors of a text cut after `length` tokens: later objects have no position and no target."""
        if not self.has_heads:
            return student, targets
        is_cut = student["object_positions"] >= length
        positions = student["object_positions"].masked_fill(is_cut, -1)
        known = {name: known & ~is_cut for name, known in targets.items() if name.endswith("_known")}
        return {**student, "object_positions": positions}, {**targets, **known}

    def padded(self, samples: Sequence[Encoded], shifts: Tensor) -> tuple[Tensors, Tensors]:
        """Return the objects of a batch, [B, M, ...]. `shifts` [B]: tokens added before each sample."""
        if not self.has_heads:
            return {}, {}
        names = [name for name in samples[0].student if name.startswith("object_")]
        student = joined_objects([sample.student for sample in samples], names)
        known = [name for name in samples[0].targets if name != "labels"]
        targets = joined_objects([sample.targets for sample in samples], known)
        positions = student["object_positions"]
        student["object_positions"] = torch.where(positions < 0, positions, positions + shifts[:, None])
        before = torch.tensor([0, *(len(sample.frames) for sample in samples[:-1])]).cumsum(0)
        # Padding must have the index of an existing image: the last samples may have no image.
        student["object_images"] = (student["object_images"] + before[:, None]).masked_fill(positions < 0, 0)
        return student, targets

    def read(self, text: str, frames: Sequence[Frame]) -> tuple[tuple[Mark, ...], int]:
        """Return the marks in a text, in pixels of the first image, and the number that could not be parsed."""
        locations, unreadable = self.box_format.read(text)
        marks = []
        for location in locations if frames else ():
            pixels = clipped(frames[0], frames[0].pixels(*location))
            marks.append(Mark(box=pixels) if len(pixels) == 4 else Mark(point=pixels))  # type: ignore[arg-type]
        return tuple(marks), unreadable


def source_of(sample: Sample) -> str:
    """Return the origin of a sample for error messages."""
    return sample.source or "a sample"


def clipped(frame: Frame, numbers: Numbers) -> Numbers:
    """Return x y (x y) in pixels, clipped to the image."""
    lengths = (frame.width, frame.height)
    return tuple(min(max(float(value), 0.0), float(lengths[i % 2])) for i, value in enumerate(numbers))


def tight_box(mark: Mark) -> Numbers | None:
    """Return the box of a mark, or the smallest box around its mask, or None."""
    if mark.box is not None or mark.mask is None or not mark.mask.any():
        return mark.box
    columns, rows = np.flatnonzero(mark.mask.any(axis=0)), np.flatnonzero(mark.mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def resized_mask(mask: np.ndarray, frame: Frame, size: int) -> Tensor:
    """Return a mask [H, W] in its frame, resized to [size, size]: True for pixels of which at least half is covered.

    If there is no such pixel, those with the largest coverage are True, so that a small object never disappears.
    """
    full = np.zeros((frame.size[1], frame.size[0]), np.float32)
    full[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width] = mask.astype(bool)
    coverage = np.asarray(Image.fromarray(full).resize((size, size), Image.Resampling.BOX))
    largest = float(coverage.max())
    if largest == 0:
        return torch.zeros(size, size, dtype=torch.bool)
    return torch.from_numpy(coverage >= min(0.5, largest))


def _checked_mark(sample: Sample, index: int) -> Mark:
    """Return a mark of the sample. Raise `DataError` if it does not fit its image."""
    if not 0 <= index < len(sample.marks):
        raise DataError.at(
            source_of(sample), f"the text refers to mark {index}, but there are {len(sample.marks)} (counted from 0)"
        )
    mark = sample.marks[index]
    if not 0 <= mark.image < len(sample.images):
        raise DataError.at(
            source_of(sample),
            f"mark {index} is in image {mark.image}, but there are {len(sample.images)} (counted from 0)",
        )
    width, height = sample.images[mark.image].size
    if mark.mask is not None and mark.mask.shape != (height, width):
        raise DataError.at(
            source_of(sample),
            f"the mask of mark {index} has the shape {mark.mask.shape}, but its image has "
            f"{height} rows and {width} columns",
        )
    return mark


def _fractions(pixels: Numbers, frame: Frame, sample: Sample) -> Numbers:
    """Return x y (x y) in pixels, clipped to the image, as fractions of the frame."""
    if not all(math.isfinite(value) for value in pixels):
        raise DataError(
            f"{source_of(sample)}: a mark has the coordinates {tuple(pixels)}, which are not finite",
            "a mark has coordinates that are not finite",
        )
    return frame.relative(*clipped(frame, pixels))
