"""Dataset of images and their masks in two folders, or in one folder with the names of BiomedParse."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from typing_extensions import override

from mllm.dataset import templates
from mllm.dataset.folder_files import NamedFiles, OtherFiles, files_below
from mllm.dataset.image_files import check_image_folder, size_of_png
from mllm.dataset.patient_names import PatientNames
from mllm.dataset.progress import with_progress
from mllm.dataset.readers.notices import warn_once
from mllm.dataset.single_image_dataset.grounding import NONE, GroundingDataset, answer_turn
from mllm.dataset.tables.listed import FileRecords
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.records import ERROR
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS, READERS
from mllm.structures import BOX, Mark, Sample, UndecodedMask

logger = logging.getLogger(__name__)

_LABEL_MODES = ("1", "L", "P", "I", "I;16")
"""Modes of Pillow whose pixels are integers: the labels of a mask."""
_COLOR_MODES = ("RGB", "RGBA", "LA")
"""Modes of masks whose channels must be equal."""
_MASK_SUFFIXES = (".png", ".gif", ".tif", ".tiff", ".bmp")


@DATASETS.register_module()
class SegmentationDataset(GroundingDataset):
    r"""Segmentation: the mask of a structure in an image. An image without the structure has the answer none.

    Args:
        data_path: Folder of the images.
        mask_folder: Folder of the masks, with the same sizes as the images; None: `data_path` with `_mask` at its end,
            as in `train` and `train_mask` of BiomedParse.
        naming: 'stem': the mask of `a/001.png` is `a/001.png` (or another suffix) in `mask_folder`, with `mask_suffix`
            after the stem. 'biomedparse': the masks of `IMAGE_modality_site.png` are `IMAGE_modality_site_target.png`,
            with `+` for spaces, and the target is the label (arXiv:2405.12971).
        labels: For 'stem': the text that stands for each pixel value, as in `dict({1: "liver", 2: "tumor"})`, or one
            text for all pixels above 0. The values of a mask with a palette are its numbers, not its colors. For
            'biomedparse': the targets that are used; None: all.
        mask_suffix: Text after the stem of an image in the name of its mask, such as '_mask'. With it masks may be
            in the folder of the images.
        absent: Ask for structures that an image does not have, too. False reads all masks at the start.
        patient: Regular expression with one group that finds the patient in the path of an image below `data_path`,
            such as `r"(P\d+)_"`; None: patients are unknown.
        options: Options of `GroundingDataset`. Images without a mask are refused.

    The check before a training compares the sizes of images and masks; masks are decoded as images are, when their rows
    are used.
    """

    required: ClassVar[tuple[str, ...]] = ("image", "mask", "label")
    has_columns = False
    default_templates = templates.SEGMENTATION
    assumes_corners = False  # boxes are computed from masks
    _last: tuple[Path | None, tuple[int, int]] = None, (0, 0)
    """Mask whose header was read last, and its width and height in pixels."""

    def __init__(
        self,
        data_path: str | Path,
        mask_folder: str | Path | None = None,
        naming: Literal["stem", "biomedparse"] = "stem",
        labels: str | Sequence[str] | Mapping[int, str] | None = None,
        mask_suffix: str = "",
        absent: bool = True,
        patient: str | None = None,
        **options: Any,
    ) -> None:
        path = Path(data_path).expanduser()
        self.mask_folder = (
            path.with_name(f"{path.name}_mask") if mask_folder is None else Path(mask_folder).expanduser()
        )
        self.patients = PatientNames(patient)
        self.naming, self.labels, self.mask_suffix, self.absent = naming, labels, mask_suffix, absent
        if naming == "stem" and not isinstance(labels, (str, Mapping)):
            raise ConfigError(
                "labels is missing: name the structure (labels='lesion'), or the structure of each pixel value "
                "(labels={1: 'liver', 2: 'tumor'})"
            )
        super().__init__(path, path, **options)

    @property
    @override
    def distinguishing(self) -> frozenset[str]:
        has_one_label = self.labels is not None and (isinstance(self.labels, str) or len(self.labels) == 1)
        return super().distinguishing if has_one_label else super().distinguishing | {"label"}

    @override
    def open_records(self, path: Path) -> FileRecords:
        check_image_folder(path, "data_path")
        check_image_folder(self.mask_folder, "mask_folder")
        suffixes = tuple(READERS.names())
        images = PackedRows(name for name in files_below(path) if name.lower().endswith(suffixes))
        if not images:
            raise DataError(f"data_path {path} has no image")
        rows = self._rows_by_target(path, images) if self.naming == "biomedparse" else self._rows_by_stem(path, images)
        if isinstance(self.labels, Mapping):
            self._check_values([int(value) for value in self.labels])
        if not self.absent:
            used = (row for row in with_progress(rows, "reading masks") if ERROR in row or self._mask(row).any())
            rows = PackedRows(used)
        return FileRecords(path, rows)

    def _check_values(self, values: Sequence[int]) -> None:
        """Read masks until each value of `labels` was found.

        Raises:
            ConfigError: No mask has any of the values.
            DataError: No mask can be read.
        """
        missing, present, error = set(values), set[int](), None
        for name in with_progress(self._masks(), "reading masks"):
            try:
                labels_of_mask = np.unique(read_labels(self.mask_folder / name)).tolist()
            except DataError as reason:
                error = error or reason  # an error of its row
                continue
            present.update(labels_of_mask)
            missing.difference_update(labels_of_mask)
            if not missing:
                return
        if error and not present:
            raise error
        names = ", ".join(map(str, sorted(missing)))
        message = f"labels: no mask in {self.mask_folder} has the pixel value {names}"
        if len(missing) == len(set(values)):
            raise ConfigError(f"{message}; the masks have {', '.join(map(str, sorted(present)))}")
        logger.warning("%s", message)

    def _rows_by_stem(self, path: Path, images: Iterable[str]) -> PackedRows:
        """Return a row for each image and label; the mask has the stem of the image and a suffix."""
        labels: dict[Any, str] = {None: self.labels} if isinstance(self.labels, str) else dict(self.labels or {})  # type: ignore[arg-type]
        masks, rows = NamedFiles(self._masks(), _without_suffix), PackedRows()
        is_same = os.path.realpath(path) == os.path.realpath(self.mask_folder)
        for image in images:
            stem = _stem(image)
            if is_same and self.mask_suffix and stem.endswith(self.mask_suffix):
                continue
            found = masks.find(stem + self.mask_suffix)
            mask = os.path.join(self.mask_folder, found[0]) if found else None
            error = "" if mask else f"it has no mask in {self.mask_folder}"
            if len(found) > 1:
                error = f"it has several masks in {self.mask_folder}: {', '.join(found)}"
            for value, label in labels.items():
                row = {"image": image, "mask": str(mask), "value": value, "label": label}
                rows.append({**row, ERROR: error} if error else row)
        if not is_same:
            without_image = OtherFiles(self.mask_folder)
            for number in masks.not_found():
                without_image.add(masks.names[number])
            without_image.report("masks have no image")
        return rows

    def _rows_by_target(self, path: Path, images: Iterable[str]) -> PackedRows:
        """Return a row for each mask; the name of its image is that of the mask without the target."""
        files, rows, targets = NamedFiles(images, _without_suffix), PackedRows(), set[str]()
        used = None if self.labels is None else {self.labels} if isinstance(self.labels, str) else set(self.labels)
        for name in self._masks():
            mask = os.path.join(self.mask_folder, name)
            folder, _, last = _without_suffix(name).rpartition("/")
            stem, _, target = last.rpartition("_")
            found = files.find(f"{folder}/{stem}" if folder else stem) if stem else []
            if len(found) != 1:
                fault = f"it is the mask of no image in {path}: it must be named IMAGE_target.png"
                if found:
                    fault = f"it is the mask of several images in {path}: {', '.join(found)}"
                rows.append({"image": os.path.abspath(mask), ERROR: fault})
                continue
            label = target.replace("+", " ")
            targets.add(label)
            if used is None or label in used:
                rows.append({"image": found[0], "mask": mask, "value": None, "label": label})
        if used is not None and (unknown := sorted(map(str, used - targets))):
            raise ConfigError(f"labels: no mask in {self.mask_folder} has the target '{unknown[0]}'")
        without_mask = OtherFiles(path)
        for number in files.not_found():
            without_mask.add(files.names[number])
        without_mask.report("images have no mask")
        return rows

    def _masks(self) -> Iterator[str]:
        """Yield the files of the masks, relative to their folder."""
        masks = (name for name in files_below(self.mask_folder) if name.lower().endswith(_MASK_SUFFIXES))
        first = next(masks, None)
        if first is None:
            raise DataError(f"mask_folder {self.mask_folder} has no mask ({', '.join(_MASK_SUFFIXES)})")
        yield first
        yield from masks

    @override
    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        image = self.read_image(row["image"])
        question = self.question_turn(self.draw_template(rng, label=str(row["label"])))
        marks = self._marks(row, image)
        answer = answer_turn(BOX, [[0]]) if marks else answer_turn(NONE)
        group = self.patients.find(row["image"])
        return Sample([question, answer], [image], marks=marks, group=group, label=str(row["label"]))

    def _marks(self, row: Mapping[str, Any], image: Image.Image) -> list[Mark]:
        """Return the mark of a row; none if no pixel has its label, which is not known before the mask is decoded.

        Raises:
            DataError: The mask has another size than the image.
        """
        mask = self._mask(row) if self.decodes else None
        width, height = (mask.shape[1], mask.shape[0]) if mask is not None else self._size_of(Path(row["mask"]))
        if (width, height) != image.size:
            raise DataError(
                f"mask {row['mask']} has {width} x {height} pixels, its image {image.width} x {image.height}"
            )
        if mask is None:
            content = repr((os.stat(row["mask"]).st_size, row["value"])).encode()
            return [Mark(undecoded=UndecodedMask(height, width, content))]
        return [Mark(box=bounds(mask), mask=mask)] if mask.any() else []

    def _size_of(self, mask: Path) -> tuple[int, int]:
        """Return the size of a mask; adjacent rows about one mask read its header once."""
        if self._last[0] != mask:
            self._last = mask, size_of_labels(mask)
        return self._last[1]

    def _mask(self, row: Mapping[str, Any]) -> np.ndarray:
        """Return the mask of a row, [H, W] bool."""
        labels = read_labels(Path(row["mask"]), has_background=row["value"] is None)
        values = None if row["value"] is None else int(row["value"])
        return labels > 0 if values is None else labels == values

    @override
    def summary(self) -> dict[str, Any]:
        """Return the folders and the number of rows."""
        return {**super().summary(), "masks": str(self.mask_folder)}

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write phantoms and the masks of their lesions into two folders."""
        from mllm.dataset.phantoms.folders import write_mask_folders

        return write_mask_folders(folder, rows)


def _without_suffix(name: str) -> str:
    """Return the name of a file without its suffix."""
    return os.path.splitext(name)[0]


def _stem(image: str) -> str:
    """Return the name of an image without its suffix, also without `.nii.gz`."""
    stem = _without_suffix(image)
    return _without_suffix(stem) if image.endswith(".gz") else stem


def read_labels(path: Path, has_background: bool = False) -> np.ndarray:
    """Return the labels of the pixels of a mask, [H, W], integers: its values, or the numbers of a palette.

    Args:
        path: The mask.
        has_background: All labels but 0 are one structure.

    Raises:
        DataError: The file cannot be read, has several pages, colors or transparency that are no labels, or its
            background is another number of a palette than 0.
    """
    with _opened(path) as image:
        _check_pages(image, path)
        labels = _one_channel(image, path) if image.mode in _COLOR_MODES else np.asarray(image)
        if has_background:
            _check_background(image, labels, path)
        return labels


def _one_channel(image: Image.Image, path: Path) -> np.ndarray:
    """Return the channel of a mask with several equal ones, [H, W]; raise `DataError` if they differ."""
    if "A" in image.getbands():
        low, high = image.getchannel("A").getextrema()
        if low != high:
            raise DataError(f"mask {path} has transparency: write the labels of its pixels into one channel")
    channels = np.asarray(image.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise DataError(f"mask {path} has colors: a mask needs one channel with the labels of its pixels")
    return channels[..., 0]


def _check_pages(image: Image.Image, path: Path) -> None:
    """Raise `DataError` for a mask of several pages, of which one would be read."""
    try:
        image.seek(1)
    except EOFError:
        image.seek(0)
    else:
        raise DataError(f"mask {path} has several pages: write one file for each image")


def _check_background(image: Image.Image, labels: np.ndarray, path: Path) -> None:
    """Check a mask all of whose labels but 0 are one structure, and warn of one that was compressed or resized.

    Raises:
        DataError: It has a palette whose black pixels, its background, have another number than 0.
    """
    colors = image.getpalette("RGB") if image.mode == "P" else None
    if colors is None and labels.dtype == np.uint8:
        counts = np.bincount(labels.reshape(-1), minlength=256)
        if counts[255] and counts[1:255].any():
            fault = "is a mask of 0 and 255 with other values, as after compression or resizing: all above 0 are used"
            warn_once(path, "values of a mask", fault)
    if colors is None or not any(colors[:3]):
        return
    black = [number for number in np.unique(labels).tolist() if not any(colors[3 * number : 3 * number + 3])]
    if black:
        raise DataError(
            f"mask {path} has a palette in which number {black[0]} is black, and number 0, the background, is not: "
            "write it with one channel of labels, or name the numbers in labels"
        )


def size_of_labels(path: Path) -> tuple[int, int]:
    """Return width and height of a mask, from its header.

    Raises:
        DataError: The file cannot be read, or its pixels are not integers.
    """
    if path.suffix.lower() == ".png" and path.is_file() and (size := size_of_png(path)) is not None:
        return size  # all modes of PNG have integers
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a mask; raise `DataError` if it cannot be read, or if its pixels are not integers."""
    try:
        with Image.open(path) as image:
            if image.mode not in (*_LABEL_MODES, *_COLOR_MODES):
                raise DataError(f"mask {path} has pixels of mode {image.mode}: labels must be integers")
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"mask {path} cannot be read ({error})") from error


def bounds(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return the box around a mask that is not empty: x1 y1 x2 y2 in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
