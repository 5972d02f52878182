"""Datasets made of others: joined, mixed by weight, cut down, or divided by patient."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Literal

import numpy as np
from tqdm import tqdm
from typing_extensions import override

from mllm.dataset.base import SampleDataset
from mllm.errors import ConfigError, DataError
from mllm.registry import DATASETS
from mllm.structures import Sample

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_MANY = 100_000
"""Rows from which reading all groups takes long enough for a progress bar."""


class _Combined(SampleDataset):
    """A dataset whose samples are those of other datasets."""

    @abstractmethod
    def locate(self, index: int, epoch: int) -> tuple[SampleDataset, int]:
        """The dataset and the index in it that an index stands for in an epoch."""

    @override
    def sample(self, index: int, epoch: int = 0) -> Sample:
        dataset, row = self.locate(index, epoch)
        return dataset.sample(row, epoch)

    @override
    def describe(self, index: int, epoch: int = 0) -> str:
        dataset, row = self.locate(index, epoch)
        return dataset.describe(row, epoch)

    @override
    def group(self, index: int, epoch: int = 0) -> str | None:
        dataset, row = self.locate(index, epoch)
        return dataset.group(row, epoch)

    @override
    def measures(self, index: int, epoch: int = 0) -> dict[str, float]:
        dataset, row = self.locate(index, epoch)
        return dataset.measures(row, epoch)


@DATASETS.register_module()
class ConcatDataset(_Combined):
    """The samples of several datasets, one dataset after the other."""

    def __init__(self, datasets: Sequence[SampleDataset]) -> None:
        self.datasets = _at_least_one(datasets)
        self.ends = np.cumsum([len(dataset) for dataset in self.datasets])
        self.fixed = all(dataset.fixed for dataset in self.datasets)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @override
    def locate(self, index: int, epoch: int) -> tuple[SampleDataset, int]:
        index = _checked(index, len(self))
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.datasets[which], index - (int(self.ends[which - 1]) if which else 0)

    @override
    def rows(self) -> Iterator[tuple[SampleDataset, int]]:
        return chain.from_iterable(dataset.rows() for dataset in self.datasets)


@DATASETS.register_module()
class MixedDataset(_Combined):
    """Samples drawn from several datasets in proportion to `weights`, with replacement.

    Which dataset and which row an index stands for is a function of (seed, epoch, index) alone; an epoch has `size`
    samples, by default as many as the datasets have together.
    """

    seed_from = "run"
    fixed = False

    def __init__(
        self, datasets: Sequence[SampleDataset], weights: Sequence[float], size: int | None = None, seed: int = 0
    ) -> None:
        self.datasets = _at_least_one(datasets)
        if len(weights) != len(self.datasets):
            raise ConfigError(f"weights has {len(weights)} numbers for {len(self.datasets)} datasets")
        shares = np.asarray(weights, np.float64)
        if not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
            raise ConfigError(f"weights must be numbers of at least 0, and not all 0, not {list(weights)}")
        if size is not None and size < 1:
            raise ConfigError(f"size must be at least 1, not {size}")
        self.bounds = np.cumsum(shares / shares.sum())
        # Rounding may leave the last sum below 1; no draw may fall behind a dataset that has a weight.
        self.bounds[int(np.flatnonzero(shares)[-1]) :] = 1.0
        self.size = sum(len(dataset) for dataset in self.datasets) if size is None else size
        self.seed = seed

    def __len__(self) -> int:
        return self.size

    @override
    def locate(self, index: int, epoch: int) -> tuple[SampleDataset, int]:
        rng = np.random.default_rng((self.seed, epoch, _checked(index, len(self))))
        dataset = self.datasets[int(np.searchsorted(self.bounds, rng.random(), side="right"))]
        return dataset, int(rng.integers(len(dataset)))

    @override
    def rows(self) -> Iterator[tuple[SampleDataset, int]]:
        return chain.from_iterable(dataset.rows() for dataset in self.datasets)


class _Selection(_Combined):
    """Some of the rows of one dataset, in their order."""

    def __init__(self, dataset: SampleDataset, indices: Sequence[int] | np.ndarray) -> None:
        if not dataset.fixed:
            name = type(self).__name__
            raise ConfigError(f"{name} cannot choose rows of a MixedDataset, which draws them anew: put it inside")
        self.dataset = dataset
        self.indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    @override
    def locate(self, index: int, epoch: int) -> tuple[SampleDataset, int]:
        return self.dataset, int(self.indices[_checked(index, len(self))])

    @override
    def rows(self) -> Iterator[tuple[SampleDataset, int]]:
        return ((self.dataset, int(index)) for index in self.indices)


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
            raise ConfigError("SubsetDataset needs exactly one of portion, indices and size")
        count = len(dataset)
        if indices is not None:
            outside = [index for index in indices if not 0 <= index < count]
            if outside or not len(indices):
                raise ConfigError(f"indices must name rows from 0 to {count - 1}, not {outside or 'none'}")
            super().__init__(dataset, indices)
            return
        if portion is not None and not 0 < portion <= 1:
            raise ConfigError(f"portion must lie above 0 and not above 1, not {portion}")
        wanted = max(1, round(portion * count)) if portion is not None else size
        if wanted is None or not 1 <= wanted <= count:
            raise ConfigError(f"size must lie between 1 and the {count} samples of the dataset, not {wanted}")
        super().__init__(dataset, np.sort(np.random.default_rng(seed).permutation(count)[:wanted]))


@DATASETS.register_module()
class PatientSplit(_Selection):
    """The rows of the patients that fall into one `split`, all of a patient's rows together.

    A patient's split depends on nothing but the patient's name and `seed`: it stays when rows are added, and in every
    dataset that the patient is in. `fractions` are the expected shares of patients in train, validation and test.
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
        bounds, wanted = np.cumsum(fractions), SPLITS.index(split)
        bounds[int(np.flatnonzero(fractions)[-1]) :] = 1.0
        indices: list[int] = []
        for index in _with_progress(range(len(dataset)), "reading patients"):
            try:
                group = dataset.group(index)
            except DataError:
                # Whether a row that cannot be read ends the run is decided where it is used: in training.
                if split == "train":
                    indices.append(index)
                continue
            if group is None:
                raise DataError(
                    f"{dataset.describe(index)}: no patient is named, so PatientSplit cannot divide the rows"
                )
            if int(np.searchsorted(bounds, position(group, seed), side="right")) == wanted:
                indices.append(index)
        if not indices:
            raise DataError(f"PatientSplit leaves no rows for '{split}' of {len(dataset)}: change fractions or seed")
        self.indices = np.asarray(indices, np.int64)


def position(group: str, seed: int) -> float:
    """Where a group falls in [0, 1): uniform over names, and the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    # 53 bits are what a float holds: with more, the largest digests would round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def check_leakage(splits: Mapping[str, SampleDataset], skip: bool = False) -> None:
    """Raise `DataError` where a patient is in two splits; it tells rows, never a patient's name.

    With `skip`, a row that cannot be read belongs to nobody; without, its own `DataError` is raised.
    """
    seen: dict[str, dict[str, tuple[SampleDataset, int]]] = {}
    for name, dataset in splits.items():
        groups = seen[name] = {}
        for leaf, index in _with_progress(dataset.rows(), f"reading patients of {name}", len(dataset)):
            try:
                group = leaf.group(index)
            except DataError:
                if not skip:
                    raise
                continue
            if group is not None:
                groups.setdefault(group, (leaf, index))
        for other in list(seen)[:-1]:
            shared = [group for group in groups if group in seen[other]]
            if shared:
                (leaf, index), (first, row) = groups[shared[0]], seen[other][shared[0]]
                count = "1 patient is" if len(shared) == 1 else f"{len(shared)} patients are"
                raise DataError(
                    f"{count} in both {other} and {name}, for example {first.describe(row)} and "
                    f"{leaf.describe(index)}: divide the rows with PatientSplit, or name different people differently"
                )


def _with_progress(items: Iterator | range, what: str, total: int | None = None) -> Iterator:
    total = len(items) if isinstance(items, range) else total
    return iter(tqdm(items, desc=what, total=total, disable=(total or 0) < _MANY, leave=False))


def _at_least_one(datasets: Sequence[SampleDataset]) -> list[SampleDataset]:
    if not datasets:
        raise ConfigError("datasets must hold at least one dataset")
    return list(datasets)


def _checked(index: int, count: int) -> int:
    if not -count <= index < count:
        raise IndexError(f"sample {index} of {count}")
    return int(index) % count
