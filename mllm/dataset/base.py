"""Base classes of datasets: the interface, rows of a table, random transforms, and rows with images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from mllm.dataset.augment.transforms import Transform, apply_transforms, build_transforms
from mllm.dataset.image_files import RowImages, check_image_folder
from mllm.dataset.indices import from_zero, generator
from mllm.dataset.readers.geometry import spacing_of
from mllm.dataset.row_methods import with_row_errors
from mllm.dataset.tables.records import Records
from mllm.dataset.tables.values import (
    check_characters,
    check_groups,
    is_empty,
    missing_field,
    modality_of,
    patient_columns,
    patient_of,
)
from mllm.errors import ConfigError, DataError, UserError, hint, origin_of, with_location
from mllm.structures import Sample


class SampleDataset(ABC):
    """Map-style dataset of samples; a sample is a function of (index, epoch), in every process and after a resume."""

    seed_from: ClassVar[Literal["run", "split", "class"]] = "class"
    """Default of the option `seed`: the seed of the run, the number of the split, or the default of the class."""
    has_measures: ClassVar[bool] = True
    """False for classes whose samples never have measures, so that statistics of measures need not read them."""
    has_images: ClassVar[bool] = False
    """True for classes whose samples have images. False for combined datasets, although their parts may have images."""
    reads_files: ClassVar[bool] = True
    """False for classes whose samples are generated, so that no row can be unusable."""
    assumes_corners: bool = False
    """True if the boxes of rows are read as corners in pixels by default, and no option states their form."""
    fixed: bool = True
    """True if an index refers to the same row in every epoch."""
    has_references: bool = True
    """False for rows that are questions alone, such as those of a test split of a challenge, which has no figures."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        with_row_errors(cls)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the sample of a row in an epoch; raise `DataError` if the row cannot be used.

        `epoch` selects the random draws. A `MixedDataset` passes a number that differs between the draws of a row.
        """

    @abstractmethod
    def describe(self, index: int, epoch: int = 0) -> str:
        """Return the location of a row for messages: `FILE, line N`."""

    @abstractmethod
    def group(self, index: int, epoch: int = 0) -> str | None:
        """Return the patient of a row, None if unknown, without decoding images."""

    def inspect(self, index: int) -> Sample:
        """Return the sample of a row without decoding images and without random transforms.

        Images are absent or decoded when they are used, masks may be undecoded, and the files that the row names are
        looked up. The default only determines the patient of the row.

        Raises:
            DataError: The row cannot be used.
        """
        return Sample(turns=[], group=self.group(index))

    def plain(self, index: int) -> Sample:
        """Return the sample of a row without random transforms; the default returns that of epoch 0."""
        return self.sample(index)

    def table_row(self, index: int) -> Mapping[str, Any]:
        """Return a row of the table, such as `{"sex": "F"}`, for figures by stratum; empty without a table."""
        return {}

    def patient_hint(self) -> str:
        """Return the end of a message about rows without a patient: a column that may have it; empty without one."""
        return ""

    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        """Return the measures of a row by name. Override it to avoid reading the images of the row."""
        return self.sample(index, epoch).measures if self.has_measures else {}

    def summary(self) -> dict[str, Any]:
        """Return counts of used and dropped rows and other facts as plain values; empty if there are none."""
        return {}

    def source_dataset(self, index: int, epoch: int = 0) -> SampleDataset:
        """Return the dataset, itself or one inside it, that the sample of a row in an epoch comes from."""
        return self

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    @classmethod
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write a small generated dataset into `folder` and return its options; empty if the class has none."""
        return {}

    @classmethod
    def miniature_with(cls, options: Mapping[str, Any], folder: Path, rows: int) -> dict[str, Any]:
        """Write the miniature for these options; override it if one of them selects the form of the files."""
        return cls.miniature(folder, rows)

    def rows(self) -> Iterator[tuple[SampleDataset, int]]:
        """Yield the source dataset and the index in it of all rows that samples of any epoch may come from."""
        return ((self, index) for index in range(len(self)))


class RecordDataset(SampleDataset):
    """Dataset of the rows of a table.

    Args:
        patient_column: Column with the patient of a row. It may be absent if it is called `patient`. None: no row has
            one.
    """

    assignable: ClassVar[tuple[str, ...]] = ("patient_column",)
    records: Records
    patient_column: str | None = "patient"

    def __init__(self, patient_column: str | None = "patient") -> None:
        self.patient_column = patient_column

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "group_field" in vars(cls):  # the former name
            cls.patient_column = vars(cls)["group_field"]

    def row_group(self, row: Mapping[str, Any]) -> str | None:
        """Return the patient that a row names, None if it names none."""
        column = self.patient_column
        if column is None:
            return None
        if column not in row and column != "patient":
            fault = f"patient_column is '{column}', but the row has no such column"
            raise DataError(f"{fault}{hint(column, map(str, row))}", fault)
        return patient_of(row.get(column), column)

    @override
    def table_row(self, index: int) -> Mapping[str, Any]:
        return self.records[index]

    @override
    def patient_hint(self) -> str:
        columns = [] if self.patient_column is None else patient_columns(self.records.first_row())
        columns = [column for column in columns if column != self.patient_column]
        return f": if its column '{columns[0]}' is the patient, set patient_column='{columns[0]}'" if columns else ""

    @override
    def summary(self) -> dict[str, Any]:
        """Return the file and its number of rows."""
        return {"file": str(self.records.path), "rows": len(self.records)}


class AugmentedDataset(SampleDataset):
    """Dataset with random transforms, drawn from (seed, epoch, index).

    Options of every dataset are attributes: if the constructor of a subclass does not take one of `assignable`, the
    value of a config is assigned to the attribute after construction.

    Args:
        transforms: Entries of TRANSFORMS as dicts with their `type`.
        seed: Seed of the random draws.
    """

    assignable: ClassVar[tuple[str, ...]] = ("transforms", "seed")
    has_images = True
    seed_from: ClassVar[Literal["run", "split", "class"]] = "run"
    seed: int = 0
    _transforms: Sequence[Transform] = ()

    def __init__(self, transforms: Sequence[Mapping[str, Any]] = (), seed: int = 0) -> None:
        self.transforms = transforms
        self.seed = seed

    @property
    def transforms(self) -> Sequence[Transform]:
        """Transforms of the images; dicts with a `type` are built when they are assigned."""
        return self._transforms

    @transforms.setter
    def transforms(self, transforms: Sequence[Mapping[str, Any] | Transform]) -> None:
        self._transforms = build_transforms(transforms)

    def augment(self, sample: Sample, index: int, epoch: int) -> Sample:
        """Return the sample of a row with the random transforms of an epoch."""
        if not self._transforms:
            return sample
        rng = np.random.default_rng((self.seed, epoch, from_zero(index, len(self))))
        return apply_transforms(sample, self._transforms, rng)


class ImageTextDataset(RowImages, AugmentedDataset, RecordDataset):
    """Dataset of conversations about images, one per row of a file; subclasses define `parse(row)`.

    Args:
        data_path: A json, jsonl, csv, tsv or Parquet file, or a table of the library `datasets`; see `Records`.
        image_folder: Folder of the images; None: the folder of `data_path`.
        transforms: Entries of TRANSFORMS as dicts with their `type`.
        seed: Seed of the random draws.
        reader: Options for the reader of the images, such as `dict(window='lung')`.
        patient_column: Column with the patient of a row; see `RecordDataset`.
        columns: Names of the columns of the file by the field that they stand for: `dict(image="img_name")`. A field
            that is not named has the column of its own name. Other names than those in `fields` are refused.
    """

    required: ClassVar[tuple[str, ...]] = ()  # fields that every row must have with a value
    optional: ClassVar[tuple[str, ...]] = ("modality", "patient")
    """Further fields that the class reads, besides those in `optional` of its base classes."""
    fields: ClassVar[tuple[str, ...]] = ()
    """Fields of a row that the class reads: those in `required`, and in `optional` of the class and its bases."""
    has_columns: ClassVar[bool] = True
    """False for classes whose rows come from official files, so that no column has another name."""
    has_answers: ClassVar[bool] = True  # False for classes whose samples may have an empty answer
    assignable: ClassVar[tuple[str, ...]] = ("transforms", "seed", "reader", "patient_column", "columns")
    columns: Mapping[str, str] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declared = [name for base in cls.__mro__ for name in vars(base).get("optional", ())]
        cls.fields = tuple(dict.fromkeys((*cls.required, *declared))) if cls.has_columns else ()

    def __init__(
        self,
        data_path: str | Path,
        image_folder: str | Path | None = None,
        transforms: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
        reader: Mapping[str, Any] | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(transforms, seed)
        self.reader = reader
        self.columns = columns
        self.records = self.open_records(Path(data_path))
        self.image_folder = self.records.path.parent if image_folder is None else Path(image_folder).expanduser()
        check_image_folder(self.image_folder)

    def open_records(self, path: Path) -> Records:
        """Return the rows of the dataset."""
        return Records(path)

    def parse(self, row: dict[str, Any]) -> Sample:
        """Return the sample of a row; read its images with `self.read_image(row["image"])`."""
        raise ConfigError(f"{type(self).__name__} does not define parse(self, row), which returns the sample of a row")

    def parse_drawn(self, row: dict[str, Any], rng: np.random.Generator) -> Sample:
        """Return the sample of a row whose text is drawn from `rng`, differently in every epoch."""
        return self.parse(row)

    def __len__(self) -> int:
        return len(self.records)

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        return self.records.describe(index)

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        try:
            group = self.row_group(self.row(index))
        except DataError as error:
            raise with_location(error, self.describe(index)) from error
        # `parse` may take the patient from another source, such as the name of a file.
        return self.inspect(index).group if group is None else group

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Return the parsed sample with random transforms; messages of errors begin with the location of the row."""
        return self.augment(self._parsed(index, epoch), index, epoch)

    @override
    def inspect(self, index: int) -> Sample:
        self.decodes = False
        try:
            return self._parsed(index, epoch=0)
        finally:
            self.decodes = True

    @override
    def plain(self, index: int) -> Sample:
        return self._parsed(index, epoch=0)

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        return self.inspect(index).measures if self.has_measures else {}

    @override
    def table_row(self, index: int) -> Mapping[str, Any]:
        return self.row(index)

    def row(self, index: int) -> dict[str, Any]:
        """Return a row of the file, with `columns` under the names of their fields.

        Raises:
            DataError: The row does not have a column.
        """
        row = self.records[index]
        if not self.columns:
            return row
        for field, column in self.columns.items():
            if column not in row:
                raise DataError(f"columns['{field}'] is '{column}', but the row has no such column{hint(column, row)}")
        return {**row, **{field: row[column] for field, column in self.columns.items()}}

    def _parsed(self, index: int, epoch: int) -> Sample:
        """Return the sample of a row without random transforms."""
        source = self.describe(index)
        try:
            row = self.row(index)
        except DataError as error:
            raise with_location(error, source) from error
        for name in self.required:
            if name not in row:
                raise DataError(f"{source}: {missing_field(name, row)}", f"field '{name}' is missing")
            if is_empty(row[name]):
                raise DataError.at(source, f"field '{name}' is empty")
        self.files_of_row = []
        sample = self._parse(row, source, (self.seed, epoch, from_zero(index, len(self)), 1))
        if sample.measures and not self.has_measures:
            raise ConfigError(f"{type(self).__name__} returns measures: set has_measures = True in the class")
        if self.has_answers and any(turn.role == "assistant" and is_empty(turn.text) for turn in sample.turns):
            raise DataError.at(source, "the answer is empty")
        check_groups(sample, source)
        try:
            for turn in sample.turns:
                check_characters(turn.text, f"the text of the {turn.role}")
            group = self._group_of_sample(row, sample)
        except DataError as error:
            raise with_location(error, source) from error
        files = sample.files or list(dict.fromkeys(self.files_of_row))
        spacings = tuple(map(spacing_of, sample.images)) if self.decodes else ()
        return replace(
            sample,
            source=source,
            group=group,
            files=files,
            spacings=spacings if any(spacings) else (),
            modality=modality_of(row) if sample.modality is None else sample.modality,
        )

    def _group_of_sample(self, row: Mapping[str, Any], sample: Sample) -> str | None:
        """Return the patient that `parse` or the row names; raise `DataError` if they disagree."""
        in_row, parsed = self.row_group(row), patient_of(sample.group, "group")
        if in_row is not None and parsed is not None and in_row != parsed:
            raise DataError.without_values(
                f"{type(self).__name__}.parse returns another patient than field '{self.patient_column}' of the row "
                "has: set patient_column=None in the dataset, or return no group"
            )
        return in_row if parsed is None else parsed

    @classmethod
    @override
    def miniature(cls, folder: Path, rows: int) -> dict[str, Any]:
        """Write a small generated dataset into `folder` and return its options.

        Rows have the fields `image`, `question`, `answer` and `patient`, and a word in the other fields of `required`.
        """
        from mllm.dataset.phantoms.miniature import write_miniature  # imports this module

        return write_miniature(folder, rows, cls.required)

    def _parse(self, row: dict[str, Any], source: str, seed: tuple[int, ...]) -> Sample:
        """Call `parse_drawn`; convert every exception to an error whose message begins with the location of the row."""
        draws = type(self).parse_drawn is not ImageTextDataset.parse_drawn
        try:
            # Creating a generator takes a quarter of the time of a row of text, and most classes draw nothing.
            sample = self.parse_drawn(row, generator(*seed)) if draws else self.parse(row)
        except UserError as error:
            raise with_location(error, source) from error
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, KeyError) and error.args and error.args[0] not in row:
                # The key may be a value of another field.
                raise DataError(f"{source}: {missing_field(str(error.args[0]), row)}", "a field is missing") from error
            fault = f"{type(self).__name__}.parse failed with {type(error).__name__}"
            reason = f"{fault} in {origin_of(error)}"
            raise DataError(f"{source}: {fault}: {error}", reason) from error
        if not isinstance(sample, Sample):
            raise ConfigError(f"{type(self).__name__}.parse must return a Sample, not {type(sample).__name__}")
        return sample
