"""Combined datasets: concatenation, weighted mixture, subset, and split by patient."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from mllm.dataset.base import SampleDataset
from mllm.dataset.indices import choose_rows, from_zero
from mllm.dataset.patients import Patients
from mllm.dataset.progress import with_progress
from mllm.errors import ConfigError, DataError
from mllm.private_messages import in_row
from mllm.registry import DATASETS
from mllm.structures import Sample

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class _Combined(SampleDataset):
    """Base class of datasets whose samples come from other datasets, which may be combined themselves."""

    @abstractmethod
    def locate(self, index: int, epoch: int) -> tuple[SampleDataset, int]:
        """Return the dataset and the index in it that an index refers to in an epoch."""

    @abstractmethod
    def row_numbers(self) -> np.ndarray:
        """Return the index in its source dataset of each row, int64, for datasets that are `fixed`."""

    def draw(self, index: int, epoch: int) -> tuple[SampleDataset, int, int]:
        """Return source dataset, index in it, and number of a draw; no other draw of the row has this number.

        The number takes the place of the epoch in the source dataset, so that each draw of a row in a run has its own
        random numbers, however datasets are nested. For a row that an epoch has once, it is the epoch.
        """
        index = from_zero(index, len(self))
        number = epoch * len(self) + index  # in a MixedDataset any index may be a repetition
        if self.fixed:
            number = epoch if self.repetitions is None else epoch * self._most + int(self.repetitions[index])
        dataset, row = self.locate(index, epoch)
        while isinstance(dataset, _Combined):
            dataset, row = dataset.locate(row, number)
        return dataset, row, number

    @cached_property
    def repetitions(self) -> np.ndarray | None:
        """Number of earlier indices with the same row number; None if there are none.

        Rows of two datasets count as the same, because both may read the same file.
        """
        numbers = self.row_numbers()
        order = np.argsort(numbers, kind="stable")
        first = np.searchsorted(numbers, numbers, side="left", sorter=order)
        repetitions = np.empty(len(order), np.int32)
        repetitions[order] = np.arange(len(order)) - first[order]
        return repetitions if repetitions.any() else None

    @cached_property
    def _most(self) -> int:
        """Largest number of times that an epoch has a row."""
        return 1 if self.repetitions is None else int(self.repetitions.max()) + 1

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        dataset, row, number = self.draw(index, epoch)
        return dataset.sample(row, number)

    @override
    def inspect(self, index: int) -> Sample:
        dataset, row, _ = self.draw(index, 0)
        return dataset.inspect(row)

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        dataset, row, number = self.draw(index, epoch)
        return dataset.describe(row, number)

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        dataset, row, number = self.draw(index, epoch)
        return dataset.group(row, number)

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        dataset, row, number = self.draw(index, epoch)
        return dataset.measures(row, number)

    @override
    def table_row(self, index: int) -> Mapping[str, Any]:
        dataset, row, _ = self.draw(index, 0)
        return dataset.table_row(row)

    @override
    def plain(self, index: int) -> Sample:
        dataset, row, _ = self.draw(index, 0)
        return dataset.plain(row)

    @override
    def source_dataset(self, index: int, epoch: int = 0) -> SampleDataset:
        dataset, row, number = self.draw(index, epoch)
        return dataset.source_dataset(row, number)

    @override
    def patient_hint(self) -> str:
        sources = {id(source): source for source, _ in self.rows()}
        return next((hint for source in sources.values() if (hint := source.patient_hint())), "")


@DATASETS.register_module()
class ConcatDataset(_Combined):
    """Concatenation of datasets. Equal datasets in it have different random transforms and templates."""

    def __init__(self, datasets: Sequence[SampleDataset]) -> None:
        self.datasets = _non_empty(datasets)
        self.has_references = any(dataset.has_references for dataset in self.datasets)
        self.ends = np.cumsum([len(dataset) for dataset in self.datasets])
        self.fixed = all(dataset.fixed for dataset in self.datasets)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @override
    def locate(self, index: int, epoch: int) -> tuple[SampleDataset, int]:
        index = from_zero(index, len(self))
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.datasets[number], index - (int(self.ends[number - 1]) if number else 0)

    @override
    def row_numbers(self) -> np.ndarray:
        return np.concatenate([_row_numbers(dataset) for dataset in self.datasets])

    @override
    def rows(self) -> Iterator[tuple[SampleDataset, int]]:
        return chain.from_iterable(dataset.rows() for dataset in self.datasets)


@DATASETS.register_module()
class MixedDataset(_Combined):
    """Mixture of datasets, drawn with replacement.

    The dataset and row of an index are a function of (seed, epoch, index). Every draw of a row has its own random
    transforms and templates.

    Args:
        datasets: The datasets.
        weights: Relative probability of each dataset.
        size: Number of samples of an epoch; None: the number of samples of all datasets together.
        seed: Seed of the draws.
    """

    seed_from = "run"
    fixed = False

    def __init__(
        self, datasets: Sequence[SampleDataset], weights: Sequence[float], size: int | None = None, seed: int = 0
    ) -> None:
        self.datasets = _non_empty(datasets)
        self.has_references = any(dataset.has_references for dataset in self.datasets)
        if len(weights) != len(self.datasets):
            raise ConfigError(f"weights has {len(weights)} numbers for {len(self.datasets)} datasets")
        values = np.asarray(weights, np.float64)
        if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
            raise ConfigError(f"weights must be at least 0 and not all 0, not {list(weights)}")
        if size is not None and size < 1:
            raise ConfigError(f"size must be at least 1, not {size}")
        self.bounds = np.cumsum(values / values.sum())
        # The last sum may be rounded to less than 1; every draw must select a dataset with a weight.
        self.bounds[int(np.flatnonzero(values)[-1]) :] = 1.0
        self.size = sum(len(dataset) for dataset in self.datasets) if size is None else size
        self.seed = seed

    def __len__(self) -> int:
        return self.size

    @override
    def locate(self, index: int, epoch: int) -> tuple[SampleDataset, int]:
        rng = np.random.default_rng((self.seed, epoch, from_zero(index, len(self))))
        dataset = self.datasets[int(np.searchsorted(self.bounds, rng.random(), side="right"))]
        return dataset, int(rng.integers(len(dataset)))

    @override
    def row_numbers(self) -> np.ndarray:
        raise AssertionError("the rows of a mixture change every epoch")

    @override
    def rows(self) -> Iterator[tuple[SampleDataset, int]]:
        return chain.from_iterable(dataset.rows() for dataset in self.datasets)


class _Selection(_Combined):
    """Base class of selections of rows of one dataset, in their order."""

    def __init__(self, dataset: SampleDataset, indices: Sequence[int] | np.ndarray) -> None:
        if not dataset.fixed:
            name = type(self).__name__
            raise ConfigError(
                f"{name} cannot select rows of a MixedDataset, which change every epoch: use {name} for the datasets "
                "inside the MixedDataset"
            )
        self.dataset = dataset
        self.has_references = dataset.has_references
        self.indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    @override
    def locate(self, index: int, epoch: int) -> tuple[SampleDataset, int]:
        return self.dataset, int(self.indices[from_zero(index, len(self))])

    @override
    def row_numbers(self) -> np.ndarray:
        return _row_numbers(self.dataset)[self.indices]

    @override
    def rows(self) -> Iterator[tuple[SampleDataset, int]]:
        return (_leaf(self.dataset, int(index)) for index in self.indices)


@DATASETS.register_module()
class SubsetDataset(_Selection):
    """Part of a dataset: a `portion` in (0, 1] or a `size`, both drawn by `seed`, or the rows `indices`."""

    def __init__(
        self,
        dataset: SampleDataset,
        portion: float | None = None,
        indices: Sequence[int] | None = None,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        if sum(choice is not None for choice in (portion, indices, size)) != 1:
            raise ConfigError("exactly one of portion, indices and size is required")
        count = len(dataset)
        if indices is not None:
            outside = [index for index in indices if not 0 <= index < count]
            if outside or not len(indices):
                raise ConfigError(f"indices must be rows from 0 to {count - 1}, not {outside or 'none'}")
            super().__init__(dataset, indices)
            return
        if portion is not None and not 0 < portion <= 1:
            raise ConfigError(f"portion must be in (0, 1], not {portion}")
        rows = max(1, round(portion * count)) if portion is not None else size
        if rows is None or not 1 <= rows <= count:
            raise ConfigError(f"size must be from 1 to {count}, the number of samples of the dataset, not {rows}")
        super().__init__(dataset, choose_rows(count, rows, seed))


@DATASETS.register_module()
class PatientSplit(_Selection):
    """Rows of the patients of one split. All rows of a patient are in the same split.

    The split of a patient is a function of the patient and `seed`: it does not change when rows are added, and is the
    same in all datasets.

    Args:
        dataset: The dataset.
        split: 'train', 'validation' or 'test'.
        fractions: Expected fractions of the patients in train, validation and test.
        seed: Seed of the split.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        split: Split = "train",
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"split must be one of {', '.join(SPLITS)}, not '{split}'")
        if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ConfigError(f"fractions must be three numbers of at least 0 that sum to 1, not {list(fractions)}")
        super().__init__(dataset, ())
        bounds, number = np.cumsum(fractions), SPLITS.index(split)
        bounds[int(np.flatnonzero(fractions)[-1]) :] = 1.0
        indices, patients = list[int](), Patients()
        for index in with_progress(range(len(dataset)), "reading patients"):
            try:
                group = dataset.group(index)
            except DataError:
                # Unreadable rows are handled during training, according to on_error.
                if split == "train":
                    indices.append(index)
                continue
            if group is None:
                fault = "the row has no patient, which PatientSplit requires"
                raise DataError(
                    f"{dataset.describe(index)}: {fault}{dataset.patient_hint()}", f"row {index + 1}: {fault}"
                )
            with in_row("the divided data", index):
                patients.add(group, dataset, index)
            if int(np.searchsorted(bounds, position(group, seed), side="right")) == number:
                indices.append(index)
        patients.check_forms()
        if not indices:
            raise DataError(f"PatientSplit assigns none of {len(dataset)} rows to '{split}': change fractions or seed")
        self.indices = np.asarray(indices, np.int64)


def position(group: str, seed: int) -> float:
    """Return the position of a group in [0, 1): uniformly distributed and equal on every machine."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    # A float has 53 bits: with more, the largest digests would be rounded to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def repeated_row(dataset: SampleDataset) -> int | None:
    """Return the first index of a fixed dataset whose row has an earlier index; None if each row has one index.

    Rows are compared by their locations, so two datasets of the same file have the same rows.
    """
    if not isinstance(dataset, _Combined) or not dataset.fixed or dataset.repetitions is None:
        return None
    known = set[str]()
    for index in range(len(dataset)):
        location = dataset.describe(index)
        if location in known:
            return index
        known.add(location)
    return None


def _row_numbers(dataset: SampleDataset) -> np.ndarray:
    """Return the index in its source dataset of each row of a fixed dataset."""
    return dataset.row_numbers() if isinstance(dataset, _Combined) else np.arange(len(dataset))


def _leaf(dataset: SampleDataset, index: int) -> tuple[SampleDataset, int]:
    """Return the source dataset of a row of a fixed dataset, and the index in it."""
    while isinstance(dataset, _Combined):
        dataset, index = dataset.locate(index, 0)
    return dataset, index


def _non_empty(datasets: Sequence[SampleDataset]) -> list[SampleDataset]:
    if not datasets:
        raise ConfigError("datasets must hold at least one dataset")
    return list(datasets)
