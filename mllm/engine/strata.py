"""Figures of an evaluation by stratum: modality, task, or the values of a column such as sex or age."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

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
    """Values of a column, as far as its division depends on them."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.numbers = array("d")
        self.is_numeric, self.known = True, 0

    def add(self, row: Row) -> None:
        """Read the value of a row."""
        value = _value(row, self.column.name)
        if value is None:
            return
        self.known += 1
        number = _number(value)
        if number is None:
            self.is_numeric, self.numbers = False, array("d")
        elif self.is_numeric:
            self.numbers.append(number)

    def division(self) -> Division:
        """Return the division of the rows."""
        column = self.column
        if column.bounds and not self.is_numeric:
            raise ConfigError(f"the column '{column.name}' has values that are not numbers: name it without bounds")
        bounds = column.bounds
        if self.is_numeric and not bounds and len(np.unique(self.numbers)) >= MANY:
            bounds = tuple(sorted({float(bound) for bound in np.quantile(self.numbers, [0.25, 0.5, 0.75])}))
        return Division(column, self.is_numeric, bounds)


def divisions_of(rows: Iterable[Row], columns: Sequence[Column]) -> list[Division]:
    """Return the division of rows by each column.

    Numbers are divided at the bounds of the column. Without bounds, a column with `MANY` different numbers or more is
    divided at the quartiles of the rows, and other values are a stratum each.

    Raises:
        ConfigError: The rows have no such column, or a value is not a number although the column has bounds.
    """
    values = [_Values(column) for column in columns]
    known: set[str] = set()
    for row in rows:
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
    return [part.division() for part in values]


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
    rows: Iterable[Row], metrics: Mapping[str, Entry], columns: Sequence[Column]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the figures of the rows of each stratum, for `metrics.json`.

    Args:
        rows: Rows, which are read twice.
        metrics: Name -> metric.
        columns: The columns.

    Returns:
        Column -> value -> `samples`, `patients` (None: unknown), `small` and `figures`. The figures of a small stratum
        have no intervals.
    """
    if not columns:
        return {}
    divisions = divisions_of(rows, columns)
    parts: list[dict[Key, tuple[Stratum, Scorer]]] = [{} for _ in divisions]
    for row in rows:
        answers = answers_of(row)
        for division, members in zip(divisions, parts, strict=True):
            key = division.key(row)
            if key not in members:
                members[key] = Stratum(), Scorer(metrics)
            stratum, scorer = members[key]
            stratum.add(row)
            scorer.add(*answers)
    return {
        division.column.name: {key[1]: _summary(*members[key]) for key in sorted(members)}
        for division, members in zip(divisions, parts, strict=True)
    }


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
