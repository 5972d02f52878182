"""Figures of an evaluation by stratum: modality, task, or the values of a column such as sex or age."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np

from mllm.engine.predictions import answers_of
from mllm.errors import ConfigError, hint
from mllm.metrics.parts import hash_of
from mllm.metrics.scoring import Entry, Figures, Scorer

Row = Mapping[str, Any]
FIELDS = ("modality", "task")
"""Strata that rows have in fields of their own."""
COLUMNS = "columns"
"""Field of a row with the columns of its table that strata need."""
UNKNOWN = "unknown"
"""Stratum of rows without a value."""
MANY = 8
"""Number of different numbers from which a numeric column without bounds is divided at its quartiles."""
SMALL = 10
"""Number of patients, or of samples without patients, below which a stratum has no intervals."""
FEW = 10_000
"""Number of hashes that are collected before they are compared with the known ones."""
MAX_STRATA = 1000
"""Maximum number of strata of a column without bounds, besides that of unknown values."""
OTHERS = "other values"
"""Stratum of the values of a column that are less frequent than those of the first `MAX_STRATA` - 1 strata."""
_OTHER_KEY = math.inf, OTHERS


@dataclass(frozen=True)
class Column:
    """Column by whose values the rows are divided."""

    name: str
    bounds: tuple[float, ...] = ()
    """Increasing lower bounds of the second and each further bin of a numeric column. Empty: see `values_of`."""

    @classmethod
    def parse(cls, text: str) -> Column:
        """Return the column of a text: `sex`, or `age:18,40,65` with the bounds of its bins.

        Raises:
            ConfigError: The bounds are not increasing numbers.
        """
        name, colon, end = text.partition(":")
        try:
            bounds = tuple(float(number) for number in end.split(",")) if colon else ()
        except ValueError:
            bounds = (math.nan,)
        if not all(low < high for low, high in pairwise((*bounds, math.inf))) or not name:
            raise ConfigError(
                f"the stratum '{text}' must be a column, or a column with increasing bounds: age:18,40,65"
            )
        return cls(name, bounds)


Key = tuple[float, str]
"""Position of a stratum among those of its column, and its value, or a range such as `18 <= age < 40`."""


class Patients:
    """Count of different patients, by hashes of 64 bits of their names."""

    def __init__(self) -> None:
        self._hashes = np.zeros(0, np.uint64)
        self._new = array("Q")
        self._all_known = True

    def add(self, row: Row) -> None:
        """Count the patient of a row."""
        patient = row.get("patient")
        if patient is None:
            self._all_known = False
            return
        self._new.append(hash_of(str(patient)))
        if len(self._new) > max(FEW, len(self._hashes)):
            self._merge()

    @property
    def count(self) -> int | None:
        """Return the number of patients; None if a row has no patient."""
        self._merge()
        return len(self._hashes) if self._all_known else None

    def _merge(self) -> None:
        self._hashes = np.union1d(self._hashes, np.array(self._new, np.uint64))
        self._new = array("Q")


@dataclass(frozen=True)
class Division:
    """Division of rows into strata by a column."""

    column: Column
    is_numeric: bool
    """True if all values are numbers."""
    bounds: tuple[float, ...]
    """Lower bounds of the second and each further bin; empty: each value is a stratum."""

    def key(self, row: Row) -> Key:
        """Return the stratum of a row; keys have the order of the strata, and those without a value are last."""
        value = _value(row, self.column.name)
        number = _number(value)
        if value is None:
            return math.inf, UNKNOWN
        if self.bounds and number is not None:
            return _bin(self.column.name, number, self.bounds)
        return (number or 0.0) if self.is_numeric else 0.0, str(value)


class _Values:
    """Values of a column, as far as its division depends on them; up to 16 bytes a row."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.numbers, self.hashes = array("d"), array("Q")
        """Number of each row, NaN without one; hash of the text of each value, 0 without one."""
        self.is_numeric, self.known = True, 0

    def add(self, row: Row) -> None:
        """Read the value of a row."""
        value = _value(row, self.column.name)
        number = _number(value)
        self.hashes.append(0 if value is None else hash_of(str(value)))
        self.known += value is not None
        if value is not None and number is None:
            self.is_numeric, self.numbers = False, array("d")
        elif self.is_numeric:
            self.numbers.append(math.nan if number is None else number)

    def division(self) -> Division:
        """Return the division of the rows."""
        column = self.column
        if column.bounds and not self.is_numeric:
            raise ConfigError(f"the column '{column.name}' has values that are not numbers: name it without bounds")
        bounds = column.bounds
        numbers = np.array(self.numbers)
        numbers = numbers[~np.isnan(numbers)]
        if self.is_numeric and not bounds and len(np.unique(numbers)) >= MANY:
            bounds = tuple(sorted({float(bound) for bound in np.quantile(numbers, [0.25, 0.5, 0.75])}))
        return Division(column, self.is_numeric, bounds)

    def members(self, division: Division) -> Iterator[tuple[np.ndarray, bool]]:
        """Yield the positions of the rows of each stratum, increasing, and True for the stratum `OTHERS`."""
        is_others = -1
        if division.bounds:
            numbers = np.array(self.numbers)
            codes = np.searchsorted(division.bounds, numbers, side="right")
            codes[np.isnan(numbers)] = len(division.bounds) + 1
        else:
            hashes = np.array(self.hashes, np.uint64)
            values, first, codes, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
            if (values > 0).sum() > MAX_STRATA:
                frequent = np.lexsort((first, -counts, values == 0))[: MAX_STRATA - 1]
                is_others = len(values)
                chosen = np.full(len(values), is_others)
                chosen[frequent] = frequent
                chosen[values == 0] = np.flatnonzero(values == 0)
                codes = chosen[codes]
        order = np.argsort(codes, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(codes[order]) != 0, True)) + 1
        for positions in np.split(order, ends[:-1]):
            yield positions, bool(codes[positions[0]] == is_others)


Sample = TypeVar("Sample")
SampleRead = TypeVar("SampleRead", covariant=True)


class Passes(Protocol[SampleRead]):
    """Samples that are read again for each pass, such as `Rows`."""

    def __iter__(self) -> Iterator[SampleRead]: ...

    def chosen(self, positions: np.ndarray) -> Iterable[SampleRead]:
        """Return the samples at some positions, [M], in the order of the positions."""
        ...


def strata_of(
    samples: Passes[Sample], columns: Sequence[Column], row_of: Callable[[Sample], Row]
) -> Iterator[tuple[str, Key, Iterable[Sample]]]:
    """Yield column, key and samples of each stratum, the strata of a column in their order.

    Numbers are divided at the bounds of the column. Without bounds, a column with `MANY` different numbers or more is
    divided at the quartiles of the rows, and other values are a stratum each: the most frequent ones, and one stratum
    for all others, if they are more than `MAX_STRATA`.

    Args:
        samples: Samples, which are read once, and again stratum by stratum.
        columns: The columns.
        row_of: Function that returns the row of a sample with its columns.

    Raises:
        ConfigError: The rows have no such column, or a value is not a number although the column has bounds.
    """
    if not columns:
        return
    values = [_Values(column) for column in columns]
    known: set[str] = set()
    for sample in samples:
        row = row_of(sample)
        known.update(row.get(COLUMNS, ()))
        known.update(field for field in FIELDS if field in row)
        for part in values:
            part.add(row)
    for part in values:
        if not part.known:
            name = part.column.name
            raise ConfigError(
                f"the predictions have no '{name}'; evaluate the run again with --by {name}{hint(name, known)}"
            )
    for part, division in zip(values, [part.division() for part in values], strict=True):
        members: dict[Key, np.ndarray] = {}
        for positions, is_others in part.members(division):
            first = next(iter(samples.chosen(positions[:1])))
            members[_OTHER_KEY if is_others else division.key(row_of(first))] = positions
        for key in sorted(members):
            yield part.column.name, key, samples.chosen(members[key])


@dataclass
class Stratum:
    """Rows with the same value of a column."""

    samples: int = 0
    patients: Patients = field(default_factory=Patients)

    def add(self, row: Row) -> None:
        """Count a row."""
        self.samples += 1
        self.patients.add(row)

    @property
    def is_small(self) -> bool:
        """Return True if the stratum has fewer than `SMALL` patients, or samples without patients."""
        patients = self.patients.count
        return (self.samples if patients is None else patients) < SMALL


def stratified(
    rows: Passes[Row], metrics: Mapping[str, Entry], columns: Sequence[Column]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the figures of the rows of each stratum, for `metrics.json`.

    Args:
        rows: Rows, which are read once, and again for each column.
        metrics: Name -> metric.
        columns: The columns.

    Returns:
        Column -> value -> `samples`, `patients` (None: unknown), `small` and `figures`. The figures of a small stratum
        have no intervals.
    """
    strata: dict[str, dict[str, dict[str, Any]]] = {}
    for column, key, own in strata_of(rows, columns, lambda row: row):
        stratum, scorer = Stratum(), Scorer(metrics)
        for row in own:
            stratum.add(row)
            scorer.add(*answers_of(row))
        strata.setdefault(column, {})[key[1]] = _summary(stratum, scorer)
    return strata


def _summary(stratum: Stratum, scorer: Scorer) -> dict[str, Any]:
    """Return the counts and figures of a stratum."""
    figures = scorer.figures()
    return {
        "samples": stratum.samples,
        "patients": stratum.patients.count,
        "small": stratum.is_small,
        "figures": _without_intervals(figures) if stratum.is_small else figures,
    }


def _without_intervals(figures: Mapping[str, Figures]) -> dict[str, Figures]:
    return {
        metric: {name: value for name, value in values.items() if not name.endswith(("_ci_low", "_ci_high"))}
        for metric, values in figures.items()
    }


def _value(row: Row, name: str) -> Any:
    """Return the value of a column of a row; None without one."""
    value = row.get(name) if name in FIELDS else row.get(COLUMNS, {}).get(name)
    return None if value is None or (isinstance(value, str) and not value.strip()) else value


def _number(value: Any) -> float | None:
    """Return a value as a finite number; None if it is none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _bin(name: str, number: float, bounds: Sequence[float]) -> tuple[float, str]:
    """Return the number of the bin of a number, and its range."""
    index = int(np.searchsorted(bounds, number, side="right"))
    low = f"{bounds[index - 1]:g} <= " if index else ""
    high = f" < {bounds[index]:g}" if index < len(bounds) else ""
    return index, f"{low}{name}{high}" if low and high else f"{name} >= {bounds[-1]:g}" if low else f"{name}{high}"
