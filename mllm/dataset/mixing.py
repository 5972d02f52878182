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
    """Base class of datasets whose samples come from other datasets."""

    @abstractmethod
    def locate(self, index: int, epoch: int) -> tuple[SampleDataset, int]:
        """Return the dataset and the index in it that an index refers to in an epoch."""

    def inner_epoch(self, index: int, epoch: int) -> int:
        """Return the epoch that is passed to the dataset of an index."""
        return epoch

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        dataset, row = self.locate(index, epoch)
        return dataset.sample(row, self.inner_epoch(index, epoch))

    @override
    def inspect(self, index: int) -> Sample:
        dataset, row = self.locate(index, 0)
        return dataset.inspect(row)

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        dataset, row = self.locate(index, epoch)
        return dataset.describe(row, self.inner_epoch(index, epoch))

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        dataset, row = self.locate(index, epoch)
        return dataset.group(row, self.inner_epoch(index, epoch))

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        dataset, row = self.locate(index, epoch)
        return dataset.measures(row, self.inner_epoch(index, epoch))

    @override
    def table_row(self, index: int) -> Mapping[str, Any]:
        dataset, row = self.locate(index, 0)
        return dataset.table_row(row)

    @override
    def plain(self, index: int) -> Sample:
        dataset, row = self.locate(index, 0)
        return dataset.plain(row)

    @override
    def source_dataset(self, index: int, epoch: int = 0) -> SampleDataset:
        dataset, row = self.locate(index, epoch)
        return dataset.source_dataset(row, self.inner_epoch(index, epoch))

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
        number = self._part(index)
        return self.datasets[number], index - (int(self.ends[number - 1]) if number else 0)

    @override
    def inner_epoch(self, index: int, epoch: int) -> int:
        return epoch * len(self.datasets) + self._part(from_zero(index, len(self)))

    def _part(self, index: int) -> int:
        """Return the number of the dataset of an index."""
        return int(np.searchsorted(self.ends, index, side="right"))

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
    def inner_epoch(self, index: int, epoch: int) -> int:
        # Unique for each draw, so that a row that is drawn twice in an epoch has different transforms.
        return epoch * len(self) + from_zero(index, len(self))

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
    def inner_epoch(self, index: int, epoch: int) -> int:
        # A row that is selected several times has different transforms each time.
        if self._occurrences is None:
            return epoch
        return epoch * (int(self._occurrences.max()) + 1) + int(self._occurrences[from_zero(index, len(self))])

    @cached_property
    def _occurrences(self) -> np.ndarray | None:
        """Number of earlier selections of the row of each index; None if no row is selected twice."""
        order = np.argsort(self.indices, kind="stable")
        rows = self.indices[order]
        first = np.searchsorted(rows, rows, side="left")
        occurrences = np.empty_like(order)
        occurrences[order] = np.arange(len(order)) - first
        return occurrences if occurrences.any() else None

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
        if not indices:
            raise DataError(f"PatientSplit assigns none of {len(dataset)} rows to '{split}': change fractions or seed")
        self.indices = np.asarray(indices, np.int64)


def position(group: str, seed: int) -> float:
    """Return the position of a group in [0, 1): uniformly distributed and equal on every machine."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    # A float has 53 bits: with more, the largest digests would be rounded to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _leaf(dataset: SampleDataset, index: int) -> tuple[SampleDataset, int]:
    """Return the source dataset of a row of a fixed dataset, and the index in it."""
    while isinstance(dataset, _Combined):
        dataset, index = dataset.locate(index, 0)
    return dataset, index


def _non_empty(datasets: Sequence[SampleDataset]) -> list[SampleDataset]:
    if not datasets:
        raise ConfigError("datasets must hold at least one dataset")
    return list(datasets)
