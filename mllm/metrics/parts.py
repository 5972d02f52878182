"""Values of answers in parts, of which those of many answers are in a temporary file, and their sums over units.

A unit is an answer or, for many answers, a random group of patients. Sums over random groups have the variance of sums
over patients (Wolter 2007, Introduction to Variance Estimation, chapter 2; Chamandy et al. 2012, Estimating Uncertainty
for Massive Data Streams), so intervals need neither the answers nor a list of the patients.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mllm.metrics.bootstrap import ClassCounts

FEW = 20_000
"""Number of answers from which units are groups of patients, and number of answers of a part."""
UNITS = 16_384
"""Number of groups of patients. The standard error of an interval's width by the choice of groups is 0.6 %."""
_MERGED = 1_000_000
"""Number of entries from which equal ones are merged."""
_RANGES = 256
"""Number of ranges of equal width into which keys of 64 bits are divided in a file."""


def hash_of(text: str) -> int:
    """Return a number of 64 bits for a text, the same one in each process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def unit_of(patient: str | None, number: int) -> int:
    """Return the unit of an answer, which is a function of its patient.

    Args:
        patient: Name of the patient; None: the answer is a patient of its own.
        number: Number of the answer. It is hashed, because rows can have a period, such as two questions an image.
    """
    return hash_of(f"\0{number}" if patient is None else str(patient)) % UNITS


class PartFile:
    """Parts in a temporary file without a name, which ends with this object."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._starts = array("q")
        self._end = 0

    def append(self, part: Any) -> None:
        """Write a part of plain types and arrays.

        Raises:
            OSError: The disk is full; `filename` is the folder of temporary files.
        """
        try:
            self._file.seek(self._end)
            pickle.dump(part, self._file, pickle.HIGHEST_PROTOCOL)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from error
        self._starts.append(self._end)
        self._end = self._file.tell()

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self._starts)

    def __iter__(self) -> Iterator[Any]:
        return map(self.part, range(len(self)))

    def __reversed__(self) -> Iterator[Any]:
        return map(self.part, reversed(range(len(self))))

    def part(self, number: int) -> Any:
        """Return a part by its number, from 0."""
        self._file.seek(self._starts[number])
        return pickle.load(self._file)


def mapped(parts: Iterable[Sequence[np.ndarray]], types: Sequence[type]) -> list[np.ndarray]:
    """Join the columns of parts in temporary files, and return them mapped into memory.

    Args:
        parts: Columns [N] of each part.
        types: Type of each column.

    Raises:
        OSError: The disk is full; `filename` is the folder of temporary files.
    """
    files = [tempfile.TemporaryFile() for _ in types]  # noqa: SIM115
    try:
        for part in parts:
            for file, kind, column in zip(files, types, part, strict=True):
                file.write(np.asarray(column, kind).tobytes())
        for file in files:
            file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from error
    return [
        np.memmap(file, kind, "r") if file.tell() else np.zeros(0, kind)
        for file, kind in zip(files, types, strict=True)
    ]


class ColumnSums:
    """Sums of the columns of answers by unit.

    Args:
        units: Number of units.
        columns: Number of columns.
    """

    def __init__(self, units: int, columns: int) -> None:
        self.sums = [np.zeros(units) for _ in range(columns)]
        """Sums of each column, [U]."""

    def add(self, units: np.ndarray, *columns: np.ndarray) -> None:
        """Add the values of answers: their units [N], and their values [N] in each column."""
        for sums, values in zip(self.sums, columns, strict=True):
            sums += np.bincount(units, values, len(sums))


class EntrySums:
    """Sums of entries by unit and class, for more classes than a table could have columns.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._keys: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self._size = 0

    def add(self, units: np.ndarray, classes: np.ndarray, values: np.ndarray | None = None) -> None:
        """Add entries: their units, classes and values [E]; None: each has the value 1."""
        self._keys.append(np.asarray(units, np.int64) * self.classes + classes)
        self._values.append(np.ones(len(units)) if values is None else np.asarray(values, float))
        self._size += len(units)
        if self._size > _MERGED:
            self._merge()

    def counts(self) -> ClassCounts:
        """Return the sums by class for weights of the units."""
        self._merge()
        units, classes = np.divmod(self._keys[0], max(1, self.classes))
        return ClassCounts(units, classes, self.classes, self._values[0])

    def _merge(self) -> None:
        keys = np.concatenate([np.zeros(0, np.int64), *self._keys])
        values = np.concatenate([np.zeros(0), *self._values])
        keys, places = np.unique(keys, return_inverse=True)
        self._keys, self._values = [keys], [np.bincount(places, values, len(keys))]
        self._size = 0


class KeyCounts:
    """Sums of numbers by keys of 64 bits, which are uniform, such as hashes.

    Of more than a million keys the sums are moved to a temporary file, in the order of the keys.

    Args:
        columns: Number K of numbers that a key has.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._keys, self._values = [np.zeros(0, np.uint64)], [np.zeros((0, columns), np.int64)]
        self._size = 0
        self._file: PartFile | None = None

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Add numbers [E, K] to the sums of keys [E]."""
        self._keys.append(np.asarray(keys, np.uint64))
        self._values.append(np.asarray(values, np.int64))
        self._size += len(keys)
        if self._size > _MERGED:
            self._merge()

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield different keys in increasing order, [E], and their sums, [E, K], some at a time."""
        if self._file is None:
            yield _merged(self._keys, self._values)
            return
        self._move()
        for first in range(_RANGES):
            parts = [self._file.part(number) for number in range(first, len(self._file), _RANGES)]
            yield _merged([keys for keys, _ in parts], [values for _, values in parts])

    def _merge(self) -> None:
        keys, values = _merged(self._keys, self._values)
        self._keys, self._values, self._size = [keys], [values], len(keys)
        if self._size > _MERGED // 2:
            self._move()

    def _move(self) -> None:
        """Write the sums in memory to the file, one part for each range of keys."""
        keys, values = _merged(self._keys, self._values)
        self._file = self._file or PartFile()
        starts = (np.arange(_RANGES, dtype=np.uint64) << np.uint64(56)).astype(np.uint64)
        places = [*np.searchsorted(keys, starts).tolist(), len(keys)]
        for start, end in pairwise(places):
            self._file.append((keys[start:end], values[start:end]))
        self._keys, self._values = [keys[:0]], [values[:0]]
        self._size = 0


def _merged(keys: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the different keys in increasing order and the sums of their values."""
    all_keys, all_values = np.concatenate(keys), np.concatenate(values)
    order = np.argsort(all_keys, kind="stable")
    different, starts = np.unique(all_keys[order], return_index=True)
    if not len(different):
        return different, all_values[:0]
    return different, np.add.reduceat(all_values[order], starts, axis=0)
