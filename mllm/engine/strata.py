"""Figures of an evaluation by stratum: modality, task, or the values of a column such as sex or age."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mllm.engine.predictions import answers_of
from mllm.errors import ConfigError, hint
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


@dataclass(frozen=True)
class Stratum:
    """Rows with the same value of a column."""

    column: str
    value: str
    """A value, or a range such as `18 <= age < 40`."""
    indices: tuple[int, ...]
    """Positions of the rows."""
    patients: int | None
    """Number of patients; None if a row has no patient."""

    @property
    def is_small(self) -> bool:
        """Return True if the stratum has fewer than `SMALL` patients, or samples without patients."""
        return (len(self.indices) if self.patients is None else self.patients) < SMALL


def patients_of(rows: Iterable[Row]) -> int | None:
    """Return the number of patients of rows; None if a row has no patient."""
    patients = {row.get("patient") for row in rows}
    return None if None in patients else len(patients)


def strata_of(rows: Sequence[Row], column: Column) -> list[Stratum]:
    """Return the strata of rows by a column, in the order of their values, those without a value last.

    Numbers are divided at the bounds of the column. Without bounds, a column with `MANY` different numbers or more is
    divided at the quartiles of the rows, and other values are a stratum each.

    Raises:
        ConfigError: The rows have no such column, or a value is not a number although the column has bounds.
    """
    values = [_value(row, column.name) for row in rows]
    if all(value is None for value in values):
        known = {name for row in rows for name in [*row.get(COLUMNS, {}), *(field for field in FIELDS if field in row)]}
        raise ConfigError(
            f"the predictions have no '{column.name}'; evaluate the run again with --by {column.name}"
            f"{hint(column.name, known)}"
        )
    numbers = [_number(value) for value in values]
    is_numeric = all(number is not None for number, value in zip(numbers, values, strict=True) if value is not None)
    if column.bounds and not is_numeric:
        raise ConfigError(f"the column '{column.name}' has values that are not numbers: name it without bounds")
    known_numbers = [number for number in numbers if number is not None]
    bounds = column.bounds
    if is_numeric and not bounds and len(set(known_numbers)) >= MANY:
        bounds = tuple(sorted({float(bound) for bound in np.quantile(known_numbers, [0.25, 0.5, 0.75])}))
    members: dict[tuple[float, str], list[int]] = {}
    for index, (value, number) in enumerate(zip(values, numbers, strict=True)):
        if value is None:
            key = math.inf, UNKNOWN
        elif bounds and number is not None:
            key = _bin(column.name, number, bounds)
        else:
            key = (number or 0.0) if is_numeric else 0.0, str(value)
        members.setdefault(key, []).append(index)
    return [
        Stratum(column.name, value, tuple(indices), patients_of(rows[index] for index in indices))
        for (_, value), indices in sorted(members.items())
    ]


def stratified(
    rows: Sequence[Row], metrics: Mapping[str, Entry], columns: Sequence[Column]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the figures of the rows of each stratum, for `metrics.json`.

    Returns:
        Column -> value -> `samples`, `patients` (None: unknown), `small` and `figures`. The figures of a small stratum
        have no intervals.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for column in columns:
        result[column.name] = {}
        for stratum in strata_of(rows, column):
            scorer = Scorer(metrics)
            for index in stratum.indices:
                scorer.add(*answers_of(rows[index]))
            figures = scorer.figures()
            result[column.name][stratum.value] = {
                "samples": len(stratum.indices),
                "patients": stratum.patients,
                "small": stratum.is_small,
                "figures": _without_intervals(figures) if stratum.is_small else figures,
            }
    return result


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
