"""Official files of a public dataset."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mllm.dataset.progress import with_progress
from mllm.dataset.tables.records import Records
from mllm.dataset.tables.values import is_empty
from mllm.errors import ConfigError, DataError, hint

_FIRST = 20
"""Number of rows in which a column is searched: rows of JSON may lack a field."""


def official_file(root: Path, names: Sequence[str], contents: str) -> Path:
    """Return the first file of `names` that exists below a folder, also compressed (`.gz`).

    Args:
        root: Folder of the dataset.
        names: Names under which the file is published.
        contents: Contents of the file, for the message.

    Raises:
        DataError: No file exists.
    """
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.is_file():
                return path
    if not root.is_dir():
        raise DataError(f"data_path {root} is not a folder: set it to the folder of the dataset")
    raise DataError(f"data_path {root} has no {' or '.join(names)}: it is the official file with {contents}")


def official_split(split: str | None, known: Sequence[str]) -> str | None:
    """Return the name of an official split; raise `ConfigError` if it is unknown."""
    if split is not None and split not in known:
        raise ConfigError(f"unknown split '{split}'{hint(split, known)}")
    return split


def official_table(path: Path, columns: Sequence[str]) -> Records:
    """Return the rows of an official table.

    Raises:
        DataError: The first rows do not have a column.
    """
    records = Records(path)
    present = {name for index in range(min(len(records), _FIRST)) for name in records[index]}
    for column in columns:
        if column not in present:
            raise DataError(f"{path} has no column '{column}'{hint(column, present)}")
    return records


class Ids:
    """Ids of the rows of a table, of which duplicates are errors. They take 24 bytes a row.

    Args:
        column: Column of the ids.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self._hashes, self._indices, self._rows = array("q"), array("q"), array("q")

    def add(self, identity: str, index: int, row: int) -> None:
        """Add the id of a row.

        Args:
            identity: The id.
            index: Index of the row in the table.
            row: Number of the row of the dataset that is made of it; negative: none.
        """
        self._hashes.append(hash(identity))
        self._indices.append(index)
        self._rows.append(row)

    def errors(
        self, identity_of: Callable[[int], str], describe: Callable[[int], str], names_place: bool = False
    ) -> dict[int, str]:
        """Return the error of each row of the dataset whose id an earlier row of the table has.

        Args:
            identity_of: Function of an index that returns the id.
            describe: Function of an index that returns the location of the row.
            names_place: Write the location of the later row, too, for rows of the dataset that have another one.
        """
        hashes = np.frombuffer(self._hashes, np.int64)
        order = np.argsort(hashes, kind="stable")
        is_equal = hashes[order[1:]] == hashes[order[:-1]]
        found: dict[int, str] = {}
        first: dict[str, int] = {}
        for place in np.flatnonzero(np.concatenate([is_equal, [False]]) | np.concatenate([[False], is_equal])):
            number = int(order[place])
            index, row = self._indices[number], self._rows[number]
            identity = identity_of(index)
            earlier = first.setdefault(identity, index)  # the order is that of the table
            if earlier != index and row >= 0:
                end = f" ({describe(index)})" if names_place else ""
                text = f"column '{self.column}' has '{identity}', as {describe(earlier)} has: keep one of them{end}"
                found.setdefault(row, text)
        return found


class Groups:
    """Rows of a table in groups, in the order of the first row of each group."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._group_of, self._indices = array("q"), array("q")

    def add(self, key: str, index: int) -> int:
        """Add the row with an index to the group of a key, and return the number of the group."""
        number = self._numbers.setdefault(key, len(self._numbers))
        self._group_of.append(number)
        self._indices.append(index)
        return number

    def find(self, key: str) -> int | None:
        """Return the number of the group of a key."""
        return self._numbers.get(key)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> list[int]:
        """Return the indices of the rows of a group; no row can be added afterwards."""
        indices, starts = self._sorted
        end = starts[number + 1] if number + 1 < len(self) else len(indices)
        return indices[starts[number] : end].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[number] for number in range(len(self)))

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices in the order of the groups, and the place of the first one of each group."""
        groups = np.frombuffer(self._group_of, np.int64)
        order = np.argsort(groups, kind="stable")
        starts = np.searchsorted(groups, np.arange(len(self)), sorter=order)
        return np.frombuffer(self._indices, np.int64)[order], starts


def rows_of(records: Records) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield index and row of a table, with a progress bar."""
    indices = with_progress(range(len(records)), f"reading {records.path.name}")
    return ((index, records[index]) for index in indices)


def field(row: Mapping[str, Any], name: str) -> str:
    """Return the text of a field without white space around it; empty if there is none."""
    value = row.get(name)
    return "" if is_empty(value) else str(value).strip()
