"""What every dataset offers, and the base of those that read rows and images from files."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL.Image import Image
from typing_extensions import override

from mllm.dataset.augment.transforms import apply_transforms, build_transforms
from mllm.dataset.readers import read_images
from mllm.dataset.tables.records import Records
from mllm.errors import ConfigError, DataError, UserError, hint
from mllm.structures import Sample


class SampleDataset(ABC):
    """A collection of samples that is a function of (index, epoch): the same in every process and after a resume."""

    seed_from: ClassVar[Literal["run", "split", "class"]] = "class"
    """Where a `seed` that the config leaves out comes from: the run's, a different one per split, or the default."""
    has_measures: ClassVar[bool] = True
    """False for classes whose samples never have measures, so that statistics of measures need not read them."""
    fixed: bool = True
    """Whether an index stands for the same row in every epoch."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The sample of a row as an epoch sees it; raises `DataError` for a row that cannot be used."""

    @abstractmethod
    def describe(self, index: int, epoch: int = 0) -> str:
        """Where a row comes from, for messages: `FILE, line N`."""

    @abstractmethod
    def group(self, index: int, epoch: int = 0) -> str | None:
        """The patient of a row, or None where unknown; reads no image."""

    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        """Return the numbers to regress of a row, by name. Override it to avoid reading the images of the row."""
        return self.sample(index, epoch).measures if self.has_measures else {}

    def summary(self) -> dict[str, Any]:
        """What was found in the files, what was dropped and why, as plain values; empty where nothing is to be told."""
        return {}

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    @classmethod
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write a small generated dataset into `folder`; gives the arguments that read it, none where there is none."""
        return {}

    def rows(self) -> Iterator[tuple[SampleDataset, int]]:
        """Every dataset and index that a sample may come from, whatever the epoch."""
        return ((self, index) for index in range(len(self)))


class ImageTextDataset(SampleDataset):
    """Conversations about images, one per row of a json, jsonl or csv file; a subclass says how a row is read.

    Images are found below `image_folder` (the folder of `data_path` where it is None). `transforms` are entries of
    TRANSFORMS as dicts with their `type`, drawn anew in every epoch from (seed, epoch, index). `reader` holds options
    for the reader of the images, such as `dict(window='lung')`.
    """

    required: ClassVar[tuple[str, ...]] = ()
    """Fields that every row must have, and not empty."""
    group_field: ClassVar[str | None] = "patient"
    """The field that says who a row belongs to."""
    seed_from = "run"

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        transforms: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
        reader: Mapping[str, Any] | None = None,
    ) -> None:
        self.records = Records(data_path)
        self.image_folder = self.records.path.parent if image_folder is None else Path(image_folder).expanduser()
        if not self.image_folder.is_dir():
            raise DataError(f"image_folder {self.image_folder} does not exist")
        self.configure(transforms=transforms, seed=seed, reader=reader)

    def __init_subclass__(cls, **options: Any) -> None:
        """Let a config give every subclass `transforms`, `seed` and `reader`, also where its constructor has none."""
        super().__init_subclass__(**options)
        own = [item for name, item in inspect.signature(cls.__init__).parameters.items() if name != "self"]
        rest = [item for item in own if item.kind is item.VAR_KEYWORD]
        common = [
            item.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, item in inspect.signature(ImageTextDataset.configure).parameters.items()
            if name != "self" and name not in {item.name for item in own}
        ]
        # What `inspect.signature` reports is what the config is checked against; the builder sets what is common.
        signature = inspect.Signature([*(item for item in own if item not in rest), *common, *rest])
        setattr(cls, "__signature__", signature)  # noqa: B010  (type checkers do not know the attribute)

    def configure(
        self,
        transforms: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
        reader: Mapping[str, Any] | None = None,
    ) -> None:
        """Set what every dataset of images takes from the config, also where a subclass's constructor does not."""
        self.transforms = build_transforms([dict(transform) for transform in transforms])
        self.seed = seed
        self.reader = dict(reader or {})

    def parse(self, row: dict[str, Any]) -> Sample:
        """The sample of a row, its images read with `self.read_image(row["image"])`."""
        raise ConfigError(f"{type(self).__name__} does not say how a row becomes a sample: define parse(self, row)")

    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        """The same for a dataset whose words are drawn, anew in every epoch, from `rng`."""
        return self.parse(row)

    def __len__(self) -> int:
        return len(self.records)

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return self.records.describe(index)

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        return self._group_of(self.records[index])

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """The parsed and augmented sample; every `DataError` begins with the row's place."""
        row, source = self.records[index], self.describe(index)
        for name in self.required:
            if name not in row:
                raise DataError(f"{source}: {_missing(name, row)}")
            if row[name] is None or row[name] == "" or row[name] == []:
                raise DataError(f"{source}: field '{name}' is empty")
        drawn = (self.seed, epoch, int(index) % len(self))
        sample = self._parse(row, source, np.random.default_rng((*drawn, 1)))
        if self.transforms:
            rng = np.random.default_rng(drawn)
            sample = apply_transforms(sample, self.transforms, rng)
        if sample.measures and not self.has_measures:
            raise ConfigError(f"{type(self).__name__} returns measures: set has_measures = True in the class")
        group = self._group_of(row) if sample.group is None else str(sample.group)
        return replace(sample, source=source, group=group)

    def read_image(self, image: str | Path | Mapping[str, Any], **options: Any) -> Image:
        """The one picture in an image file, RGB; a row names it by a path or by `{"path": ..., "frames": 3}`."""
        images = self.read_images(image, **options)
        if len(images) != 1:
            raise DataError(f"{image} gives {len(images)} pictures where one is expected: choose one")
        return images[0]

    def read_images(self, image: str | Path | Mapping[str, Any], **options: Any) -> list[Image]:
        """The pictures in an image file, RGB: one unless the options choose several frames, slices or pages.

        The reader's options come from the dataset's `reader`, the row's object and the call, the later first.
        """
        chosen = dict(image) if isinstance(image, Mapping) else {"path": image}
        name = chosen.pop("path", None)
        if not isinstance(name, (str, Path)) or not str(name):
            raise DataError(f"image must be a path, or an object with a 'path', not {image!r}")
        path = self.image_folder / Path(name).expanduser()
        if not path.exists():
            raise DataError(f"image {path} does not exist")
        return read_images(path, **{**self.reader, **chosen, **options})

    @classmethod
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write a small generated dataset into `folder`; gives the keyword arguments that read it.

        Its rows have `image`, `question`, `answer` and `patient`, and a word for every other field in `required`.
        """
        # Imported here because the phantoms lie among the datasets, which are built on this module.
        from mllm.dataset.phantoms.miniature import write_miniature

        return write_miniature(folder, rows, cls.required)

    def _group_of(self, row: Mapping[str, Any]) -> str | None:
        value = row.get(self.group_field) if self.group_field else None
        return None if value is None or value == "" else str(value)

    def _parse(self, row: dict[str, Any], source: str, rng: np.random.Generator) -> Sample:
        """`parse_drawn`, with every failure told in a sentence that begins with the row's place."""
        try:
            sample = self.parse_drawn(row, rng)
        except UserError as error:
            raise type(error)(f"{source}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, KeyError) and error.args and error.args[0] not in row:
                raise DataError(f"{source}: {_missing(str(error.args[0]), row)}") from error
            name = type(self).__name__
            raise DataError(f"{source}: {name}.parse failed with {type(error).__name__}: {error}") from error
        if not isinstance(sample, Sample):
            raise ConfigError(f"{type(self).__name__}.parse must return a Sample, not {type(sample).__name__}")
        return sample


def _missing(name: str, row: Mapping[str, Any]) -> str:
    return f"field '{name}' is missing{hint(name, map(str, row))}"
