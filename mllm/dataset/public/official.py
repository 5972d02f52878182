"""Official files of a public dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm.dataset.progress import with_progress
from mllm.dataset.tables.records import Records
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
    """Ids of the rows of a table, each with the location of its first row.

    Args:
        column: Column of the ids.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self._first: dict[str, str] = {}

    def error_of(self, identity: str, place: str) -> str:
        """Return the error of a row whose id an earlier row has; empty for a new id."""
        first = self._first.setdefault(identity, place)
        return "" if first == place else f"column '{self.column}' has '{identity}', as {first} has: keep one of them"


def rows_of(records: Records) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield index and row of a table, with a progress bar."""
    indices = with_progress(range(len(records)), f"reading {records.path.name}")
    return ((index, records[index]) for index in indices)


def field(row: Mapping[str, Any], name: str) -> str:
    """Return the text of a field without white space around it; empty if there is none."""
    return str(row.get(name) or "").strip()
