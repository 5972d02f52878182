"""Rows of a table as dicts, with the file and line of each row for messages."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mllm.dataset.indices import from_zero
from mllm.dataset.tables.arrow import ARROW_FOLDER, ARROW_SPLITS, ArrowRows, is_hub_name
from mllm.dataset.tables.csv_files import CsvRows
from mllm.dataset.tables.json_files import open_json, open_json_lines
from mllm.dataset.tables.text_files import table_suffix
from mllm.errors import DataError, nearest_names

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
ERROR = "error of the row"
"""Field of a row that cannot be used, with the reason."""
FIRST = 20
"""Number of rows of which the columns of a table are known: rows may be damaged, and those of JSON may lack a field."""
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")


class Rows(Protocol):
    """Rows of one file."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Any:
        """Return a row, of any type; raise `ValueError` with the reason if it cannot be parsed."""
        ...

    def line(self, index: int) -> int:
        """Return the line on which a row begins, from 1."""
        ...


class Records:
    """Rows of a file as dicts: `len(records)`, `records[i]`, and `records.describe(i)` -> `FILE, line N`.

    * `.jsonl`: one object per line, read row by row from an index of byte offsets, so that the file may be large.
    * `.json`: a list of objects, `{"data": [...]}`, or an object that maps ids to objects.
    * `.csv`, `.tsv`: the first line has the names of the columns, unless `columns` is given.
    * `.parquet`, a folder written by `datasets`, `ORG/NAME` on the Hub: mapped into memory. `split` selects a split
      of the last two.

    Blank lines are skipped. Text files are in UTF-8, or in UTF-16 with a byte order mark, and may be compressed by gzip
    (`.csv.gz`).

    Raises:
        DataError: The file is missing, empty or malformed.
    """

    def __init__(self, path: str | Path, split: str | None = None, columns: Sequence[str] | None = None) -> None:
        self.path = Path(path).expanduser()
        try:
            self._rows = self._open(split, columns)
        except UnicodeError as error:
            reason = error.reason if isinstance(error, UnicodeDecodeError) else error
            fault = "is not UTF-8 text"
            raise DataError(f"{self.path} {fault} ({reason}): save it as UTF-8", f"its table {fault}") from error
        except (EOFError, zlib.error) as error:
            raise DataError(f"{self.path} is a damaged gzip file ({error})") from error
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if not len(self._rows):
            raise DataError(f"{self.path} is empty", "its table is empty")

    def _open(self, split: str | None, columns: Sequence[str] | None) -> Rows:
        """Return the rows of the path, read according to its kind."""
        path = self.path
        if is_hub_name(path) or (path / ARROW_FOLDER).is_file() or (path / ARROW_SPLITS).is_file():
            return ArrowRows(path, split)
        _check_path(path)
        if split is not None:
            raise DataError(f"split='{split}' selects a split of a folder or of the Hub, but {path} is a file")
        suffix = table_suffix(path)
        if suffix in (".csv", ".tsv"):
            return CsvRows(path, "\t" if suffix == ".tsv" else ",", columns)
        kinds: dict[str, Callable[[Path], Rows]] = {
            ".jsonl": open_json_lines,
            ".json": open_json,
            ".parquet": ArrowRows,
        }
        return kinds[suffix](path)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = from_zero(index, len(self))
        try:
            row = self._rows.row(index)
        except UnicodeDecodeError as error:
            raise DataError.at(self.describe(index), f"not UTF-8 text ({error.reason})") from error
        except ValueError as error:
            raise DataError(f"{self.describe(index)}: {error}", "the row cannot be parsed") from error
        if not isinstance(row, dict):
            raise DataError.at(self.describe(index), f"a row must be an object {{...}}, not a {type(row).__name__}")
        return row

    def row_or_error(self, index: int) -> dict[str, Any]:
        """Return a row, or `{ERROR: reason}` for one that cannot be read."""
        try:
            return self[index]
        except DataError as error:
            return {ERROR: str(error)}

    def first_row(self) -> dict[str, Any]:
        """Return the first row that can be read; empty if the first 20 cannot be."""
        rows = (self.row_or_error(index) for index in range(min(len(self), FIRST)))
        return next((row for row in rows if ERROR not in row), {})

    def describe(self, index: int) -> str:
        """Return the file and line of a row: `FILE, line N`, with `(row N)` if several rows are on that line."""
        index = from_zero(index, len(self))
        line = self._rows.line(index)
        is_shared = index > 0 and self._rows.line(index - 1) == line
        is_shared = is_shared or (index + 1 < len(self) and self._rows.line(index + 1) == line)
        return f"{self.path}, line {line}" + (f" (row {index + 1})" if is_shared else "")


def _check_path(path: Path) -> None:
    if re.match(r"[A-Za-z]:[\\/]|\\\\", str(path)) and not path.exists():
        raise DataError(f"data_path {path} is a Windows path: write the path of the file on this machine")
    if path.is_dir():
        raise DataError(f"data_path {path} is a folder: set it to the file with the rows")
    if not path.exists():
        tail = f" (nor does its folder {path.parent})" if not path.parent.is_dir() else ""
        if not tail:
            names = [entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in SUFFIXES]
            matches = nearest_names(path.name, names)
            tail = (
                f": did you mean {' or '.join(repr(str(path.with_name(name))) for name in matches)}?" if matches else ""
            )
        raise DataError(f"data_path {path} does not exist{tail}", "data_path does not exist")
    if table_suffix(path) not in SUFFIXES:
        if table_suffix(path) in _WORKBOOKS:
            raise DataError(f"data_path {path} is a workbook: save the sheet as CSV", "data_path is a workbook")
        raise DataError(f"data_path {path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
