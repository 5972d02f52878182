"""Official files of a public dataset."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mllm.dataset.progress import with_progress
from mllm.dataset.tables.records import ERROR, FIRST, Records
from mllm.dataset.tables.values import is_empty
from mllm.errors import ConfigError, DataError, hint


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
        DataError: The first rows do not have a column, or none of them can be read.
    """
    records = Records(path)
    check_columns(records, columns)
    return records


def check_columns(records: Records, columns: Sequence[str]) -> None:
    """Raise `DataError` if the first rows of a table do not have a column, or if none of them can be read."""
    rows = [records.row_or_error(index) for index in range(min(len(records), FIRST))]
    present = {name for row in rows if ERROR not in row for name in row}
    if not present:
        raise DataError(rows[0][ERROR])
    for column in columns:
        if column not in present:
            raise DataError(f"{records.path} has no column '{column}'{hint(column, present)}")


class Ids:
    """Ids of the rows of a table, of which duplicates are errors. They take 16 bytes a row.

    Args:
        column: Column of the ids.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self._hashes, self._indices, self._rows = array("q"), array("i"), array("i")

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
    """Rows of a table in groups by key, in the order of the first row of each group. A row takes 28 bytes.

    Keys are compared by hashes of 64 bits. No row can be added after the groups were read.
    """

    def __init__(self) -> None:
        self._hashes, self._indices = array("q"), array("i")

    def add(self, key: str, index: int) -> None:
        """Add the row with an index to the group of a key."""
        self._hashes.append(hash(key))
        self._indices.append(index)

    def number_of(self, place: int) -> int:
        """Return the number of the group of the row that was added at a place, from 0."""
        return int(self._sorted.numbers[place])

    def find(self, key: str) -> int | None:
        """Return the number of the group of a key."""
        keys, value = self._sorted.keys, hash(key)
        place = int(np.searchsorted(keys, value))
        return int(self._sorted.number_of_key[place]) if place < len(keys) and keys[place] == value else None

    def __len__(self) -> int:
        return len(self._sorted.keys)

    def __getitem__(self, number: int) -> list[int]:
        """Return the indices of the rows of a group."""
        indices, starts = self._sorted.indices, self._sorted.starts
        return indices[starts[number] : starts[number + 1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[number] for number in range(len(self)))

    @functools.cached_property
    def _sorted(self) -> _SortedGroups:
        keys, first, places = np.unique(np.frombuffer(self._hashes, np.int64), return_index=True, return_inverse=True)
        number_of_key = np.empty(len(keys), np.int32)
        number_of_key[np.argsort(first)] = np.arange(len(keys), dtype=np.int32)
        numbers = number_of_key[places]
        starts = np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=len(keys)))]).astype(np.int32)
        indices = np.frombuffer(self._indices, np.int32)[np.argsort(numbers, kind="stable")]
        return _SortedGroups(keys, number_of_key, numbers, indices, starts)


class _SortedGroups(NamedTuple):
    """Groups of rows as arrays."""

    keys: np.ndarray
    """Hashes of the keys, sorted [groups]."""
    number_of_key: np.ndarray
    """Number of the group of each key [groups]."""
    numbers: np.ndarray
    """Number of the group of each row, in the order in which the rows were added [rows]."""
    indices: np.ndarray
    """Indices of the rows in the order of the groups [rows]."""
    starts: np.ndarray
    """Place of the first row of each group in `indices`, and the number of rows [groups + 1]."""


def rows_of(records: Records) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield index and row of a table, with a progress bar. A row that cannot be read is `{ERROR: reason}`."""
    indices = with_progress(range(len(records)), f"reading {records.path.name}")
    return ((index, records.row_or_error(index)) for index in indices)


def no_row(column: str, value: str, table: Path, unreadable: str) -> str:
    """Return the error of a row for whose value of a column another table has no row.

    Args:
        column: The column.
        value: Its value.
        table: The other table.
        unreadable: Error of the first row of this table that cannot be read; empty: all can be.
    """
    reason = f", of which a row cannot be read: {unreadable}" if unreadable else ""
    return f"{column} '{value}' has no row in {table}{reason}"


def field(row: Mapping[str, Any], name: str) -> str:
    """Return the text of a field without white space around it; empty if there is none."""
    value = row.get(name)
    return "" if is_empty(value) else str(value).strip()
