"""Boxes, masks and points on their way into a conversation and back: framed, written, and told to the heads."""

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
    """A mark that one token of the conversation stands for."""

    mark: Mark
    box: Numbers | None
    """x1 y1 x2 y2 as shares of the frame; None where its mask has no pixel."""
    supervised: bool
    """Whether it stands in an assistant's turn."""


class MarkWriter:
    """Puts marks into texts and tensors in the way that a model knows.

    `pad_to_square` puts every image in the middle of a square first, of the color `background`; None: the encoder takes
    the mean color of the model's own image processor. `has_heads` says whether objects are told to the model as
    tensors; None: where the format needs it. `mask_size` is the side of the masks that the model's mask head reads and
    writes, in pixels; None: it has none.
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

    def against(self, background: Color) -> MarkWriter:
        """The same with another color around the images that become squares."""
        other = copy(self)
        other.background = background
        return other

    def framed(self, sample: Sample) -> tuple[Sample, tuple[Frame, ...], list[Object]]:
        """The sample as the model's template and processor take it, a frame for each image, and its objects in order.

        Raises `DataError` where placeholders and marks do not fit together.
        """
        frames = self.frames(sample)
        images = [self._padded(image, frame) for image, frame in zip(sample.images, frames, strict=True)]
        turns, objects = self.written(sample, sample.turns, frames)
        return replace(sample, turns=turns, images=images), frames, objects

    def frames(self, sample: Sample) -> tuple[Frame, ...]:
        """How each image of a sample lies in what the model sees of it."""
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

    def written(
        self, sample: Sample, turns: Sequence[Turn], frames: Sequence[Frame]
    ) -> tuple[list[Turn], list[Object]]:
        """Turns of a sample with their placeholders replaced by what the model reads, and their objects in order."""
        done: list[Turn] = []
        objects: list[Object] = []
        for turn in turns:
            # At odd places stand the placeholders.
            parts = re.split(f"({BOX}|{POINT})", turn.text) if turn.marks else [turn.text]
            if len(parts) // 2 != len(turn.marks):
                raise DataError(
                    f"{_where(sample)}: the text has {len(parts) // 2} {BOX} and {POINT} placeholders for "
                    f"{len(turn.marks)} groups of marks"
                )
            for number, group in enumerate(turn.marks):
                place, marks = 2 * number + 1, [_chosen(sample, index) for index in group]
                if parts[place] == POINT:
                    parts[place] = self._points(sample, marks, frames)
                    continue
                named = self._boxes(sample, marks, frames, turn.role == "assistant")
                parts[place] = self.box_format.write_boxes([item.box or (0.0,) * 4 for item in named])
                objects += named if self.box_format.needs_heads else []
            done.append(replace(turn, text="".join(parts), marks=()))
        return done, objects

    def _points(self, sample: Sample, marks: Sequence[Mark], frames: Sequence[Frame]) -> str:
        if self.box_format.needs_heads:
            raise DataError(f"{_where(sample)}: heads read boxes and masks, and this text names a {POINT}")
        points = []
        for mark in marks:
            if mark.point is None:
                raise DataError(f"{_where(sample)}: {POINT} stands for a mark that has no point")
            points.append(_shares(mark.point, frames[mark.image], sample))
        return self.box_format.write_points(points)

    def _boxes(self, sample: Sample, marks: Sequence[Mark], frames: Sequence[Frame], supervised: bool) -> list[Object]:
        named = []
        for mark in marks:
            if mark.box is None and mark.mask is None:
                raise DataError(f"{_where(sample)}: {BOX} stands for a mark that has no box and no mask")
            box = tight_box(mark)
            # A mask without a pixel is a mask still; but there is no box around it.
            if box is not None or (self.box_format.needs_heads and self.mask_size is not None):
                shares = None if box is None else _shares(box, frames[mark.image], sample)
                named.append(Object(mark, shares, supervised))
        return named

    def tensors(self, objects: Sequence[Object], frames: Sequence[Frame], positions: Tensor) -> tuple[Tensors, Tensors]:
        """What the model and the objectives are told of M objects whose tokens stand at `positions` [M]; M >= 1."""
        if not self.has_heads:
            return {}, {}
        assert len(objects) == len(positions), "an object's token was lost or made on the way"
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
                student["object_masks"][i] = shrunk(item.mark.mask, frames[item.mark.image], self.mask_size)
                student["object_has_mask"][i] = True
        targets = {"boxes": student["object_boxes"], "boxes_known": student["object_has_box"] & supervised}
        if self.mask_size is not None:
            targets["masks"] = student["object_masks"]
            targets["masks_known"] = student["object_has_mask"] & supervised
        return student, targets

    def cut(self, student: Tensors, targets: Tensors, length: int) -> tuple[Tensors, Tensors]:
        """The same of a text cut after `length` tokens: objects behind have no place and are not known."""
        if not self.has_heads:
            return student, targets
        lost = student["object_positions"] >= length
        positions = student["object_positions"].masked_fill(lost, -1)
        known = {name: known & ~lost for name, known in targets.items() if name.endswith("_known")}
        return {**student, "object_positions": positions}, {**targets, **known}

    def padded(self, samples: Sequence[Encoded], shifts: Tensor) -> tuple[Tensors, Tensors]:
        """The objects of a batch, [B, M, ...]; `shifts` [B] tokens were added before each sample's own."""
        if not self.has_heads:
            return {}, {}
        names = [name for name in samples[0].student if name.startswith("object_")]
        student = joined_objects([sample.student for sample in samples], names)
        known = [name for name in samples[0].targets if name != "labels"]
        targets = joined_objects([sample.targets for sample in samples], known)
        positions = student["object_positions"]
        student["object_positions"] = torch.where(positions < 0, positions, positions + shifts[:, None])
        before = torch.tensor([0, *(len(sample.frames) for sample in samples[:-1])]).cumsum(0)
        # What is no object must name an image that exists: samples without one may stand behind the last.
        student["object_images"] = (student["object_images"] + before[:, None]).masked_fill(positions < 0, 0)
        return student, targets

    def read(self, text: str, frames: Sequence[Frame]) -> tuple[tuple[Mark, ...], int]:
        """The marks that a text names, in pixels of the first image, and how many could not be read."""
        places, unreadable = self.box_format.read(text)
        marks = []
        for place in places if frames else ():
            inside = within(frames[0], frames[0].pixels(*place))
            marks.append(Mark(box=inside) if len(inside) == 4 else Mark(point=inside))  # type: ignore[arg-type]
        return tuple(marks), unreadable


def within(frame: Frame, numbers: Numbers) -> Numbers:
    """x y (x y) in pixels, clipped to the image."""
    lengths = (frame.width, frame.height)
    return tuple(min(max(float(value), 0.0), float(lengths[i % 2])) for i, value in enumerate(numbers))


def tight_box(mark: Mark) -> Numbers | None:
    """The mark's box, or the smallest around its mask; None where there is neither."""
    if mark.box is not None or mark.mask is None or not mark.mask.any():
        return mark.box
    columns, rows = np.flatnonzero(mark.mask.any(axis=0)), np.flatnonzero(mark.mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def shrunk(mask: np.ndarray, frame: Frame, size: int) -> Tensor:
    """A mask [H, W] in its frame at [size, size], bool: where at least half is covered.

    Of a thing too small for that, what is covered most, so that it never vanishes.
    """
    full = np.zeros((frame.size[1], frame.size[0]), np.float32)
    full[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width] = mask.astype(bool)
    covered = np.asarray(Image.fromarray(full).resize((size, size), Image.Resampling.BOX))
    most = float(covered.max())
    return torch.from_numpy(covered >= min(0.5, most)) if most > 0 else torch.zeros(size, size, dtype=torch.bool)


def _where(sample: Sample) -> str:
    return sample.source or "a sample"


def _chosen(sample: Sample, index: int) -> Mark:
    """A mark of the sample, checked against its image."""
    if not 0 <= index < len(sample.marks):
        raise DataError(f"{_where(sample)}: a text names mark {index}, and there are {len(sample.marks)} (from 0)")
    mark = sample.marks[index]
    if not 0 <= mark.image < len(sample.images):
        raise DataError(
            f"{_where(sample)}: mark {index} lies in image {mark.image}, and there are {len(sample.images)} (from 0)"
        )
    width, height = sample.images[mark.image].size
    if mark.mask is not None and mark.mask.shape != (height, width):
        raise DataError(
            f"{_where(sample)}: the mask of mark {index} has the shape {mark.mask.shape}, and its image has "
            f"{height} rows and {width} columns"
        )
    return mark


def _shares(pixels: Numbers, frame: Frame, sample: Sample) -> Numbers:
    """x y (x y) in pixels, clipped to the image, as shares of the frame."""
    if not all(math.isfinite(value) for value in pixels):
        raise DataError(f"{_where(sample)}: a mark has the coordinates {tuple(pixels)}, which are no numbers")
    return frame.relative(*within(frame, pixels))
