"""Rows of CSV and TSV files."""

from __future__ import annotations

import csv
import logging
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.text_files import open_text
from mllm.errors import DataError

logger = logging.getLogger(__name__)

DELIMITERS = (",", ";", "\t", "|")
_OTHER_MARKS = ("''", "\u201c\u201d", "\u2018\u2019", "``", "\u201e\u201c", "\u00ab\u00bb")
"""Pairs of quotation marks that are no syntax of CSV."""
_ESCAPED = re.compile(r"\\(.?)")
"""Backslash and the character after it in a line, none at its end."""
csv.field_size_limit(2**31 - 1)  # reports can be longer than the default of 128 KiB


class CsvRows:
    """Rows of a CSV or TSV file with named columns, and the line on which each row begins.

    * A delimiter other than that of the suffix is used if the header would have only one column, or if the first line
      is `sep=;`.
    * A quoted value may contain delimiters and line breaks. In a file with tabs, quotation marks are ordinary
      characters if they do not enclose whole values in all rows, or if `columns` is given.
    * Backslashes before quotation marks and delimiters are no part of the values if no other characters follow a
      backslash in the file, as programs write it that do not double quotation marks.
    * A row that repeats the header, from files that were joined, is left out.
    * Spaces after the delimiters are ignored if the header has one after each of them.
    * Columns without a name are left out if they are empty, else they are named `Unnamed: 0` by their index, as in
      pandas. Empty values after the last column are ignored.

    Args:
        path: The file.
        delimiter: The delimiter of the suffix.
        columns: Names of the columns of a file without a header.

    Raises:
        DataError: The quotation marks of a line are not closed, other ones such as `'` enclose all values, or a column
            has the name of another one.
    """

    def __init__(self, path: Path, delimiter: str = ",", columns: Sequence[str] | None = None) -> None:
        self.path = path
        if columns is None:
            delimiter = _find_delimiter(path, delimiter)
        table = _read(path, delimiter, columns, is_quoted=columns is None)
        if delimiter == "\t" and columns is None:
            table = _choose_quoting(path, table)
        if columns is None:
            table = _without_escapes(path, delimiter, table)
        if table.failure is not None:
            raise table.failure
        self.names, self.rows, self.lines, self._header_line = table.names, table.rows, table.lines, table.header_line
        if table.repeated:
            logger.info("%s: %d rows repeat the header and are left out", path, table.repeated)
        if self.names and columns is None and not len(self.rows):
            raise DataError(f"{path} has a first line and no rows", "its table has no rows")
        if columns is None and self.names:
            self._refuse_other_quotation_marks(table)
        self._name_columns()

    def _refuse_other_quotation_marks(self, table: _Table) -> None:
        """Raise `DataError` if other quotation marks than `"` enclose all names, or all values; warn of one column."""
        enclosed = [index for index in sorted(table.enclosed) if self._has_values(index)]
        if all(map(_is_enclosed, self.names)) or len(enclosed) == len(self.names):
            raise DataError(
                f'{self.path}, line {self._header_line}: values are enclosed in other quotation marks than ", which '
                'would be learned: write the table with " around values',
                'values are enclosed in other quotation marks than ", which would be learned',
            )
        if enclosed:
            name = self.names[enclosed[0]]
            logger.warning(
                "%s: all values of column '%s' are enclosed in quotation marks, which are a part of them",
                self.path,
                name,
            )

    def _name_columns(self) -> None:
        """Name the columns without a name, and refuse duplicate names."""
        self.is_used = [bool(name) or self._has_values(index) for index, name in enumerate(self.names)]
        self.names = [name or f"Unnamed: {index}" for index, name in enumerate(self.names)]
        duplicates = [name for name in self.names if self.names.count(name) > 1]
        if duplicates:
            raise DataError(f"{self.path}, line {self._header_line}: duplicate column '{duplicates[0]}'")

    def _has_values(self, column: int) -> bool:
        """Return True if a row has a value in a column."""
        return any(column < len(values) and values[column].strip() for values in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def line(self, index: int) -> int:
        """Return the line on which a row begins, from 1."""
        return self.lines[index]

    def row(self, index: int) -> dict[str, str]:
        """Return a row as a dict; raise `ValueError` if its number of values is not the number of columns."""
        values = self.rows[index]
        if len(values) != len(self.names):
            raise ValueError(f"{len(values)} values for {len(self.names)} columns")
        cells = zip(self.names, values, self.is_used, strict=True)
        return {name: value for name, value, is_used in cells if is_used}


@dataclass
class _Table:
    """Values of a file with one way to read quotation marks."""

    names: list[str]
    header_line: int = 0
    rows: PackedRows = field(default_factory=PackedRows)
    lines: array[int] = field(default_factory=lambda: array("q"))
    failure: DataError | None = None
    """Error about a line with invalid quotation marks; None if all are valid."""
    repeated: int = 0
    """Number of rows that repeat the header."""
    enclosed: set[int] = field(default_factory=set)
    """Columns of which all values are blank or enclosed in single or typographic quotation marks."""

    def add(self, values: list[str], line: int) -> None:
        """Add the header or a row."""
        if not any(value.strip() for value in values):
            return
        if not self.names:
            if not (line == 1 and _separator_line(values)):
                self.names, self.header_line = list(map(_name_of, values)), line
                self.enclosed = set(range(len(self.names)))
            return
        if self.header_line and len(values) > 1 and list(map(_name_of, values)) == self.names:
            self.repeated += 1
            return
        count = len(self.names)
        if len(values) > count and not any(value.strip() for value in values[count:]):
            values = values[:count]
        if self.enclosed:
            self.enclosed = {index for index in self.enclosed if index >= len(values) or _may_enclose(values[index])}
        self.rows.append(tuple(values))
        self.lines.append(line)

    def uneven(self) -> int:
        """Return the number of rows with another number of values than there are columns."""
        return sum(len(values) != len(self.names) for values in self.rows)


def _is_enclosed(value: str) -> bool:
    """Return True for a value between single or typographic quotation marks."""
    stripped = value.strip()
    return len(stripped) > 1 and stripped[0] + stripped[-1] in _OTHER_MARKS


def _may_enclose(value: str) -> bool:
    return not value.strip() or _is_enclosed(value)


def _name_of(value: str) -> str:
    """Return the name of a column, without white space and byte order marks around it."""
    return value.strip().strip("\ufeff").strip()


def _read(
    path: Path, delimiter: str, columns: Sequence[str] | None, is_quoted: bool, is_escaped: bool = False
) -> _Table:
    """Read all rows of a file; `is_escaped`: a backslash stands before a quotation mark that is part of a value."""
    table = _Table(list(columns or ()))
    options: dict[str, Any] = {"quoting": csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE}
    if is_escaped:
        options |= {"escapechar": "\\", "doublequote": False}
    with open_text(path) as file:
        reader = csv.reader(
            file, delimiter=delimiter, strict=True, skipinitialspace=_is_spaced(path, delimiter), **options
        )
        previous = 0
        try:
            for values in reader:
                table.add(values, previous + 1)
                previous = reader.line_num
        except csv.Error as error:
            table.failure = DataError.at(f"{path}, line {previous + 1}", f"not valid CSV ({error})")
    return table


def _choose_quoting(path: Path, quoted: _Table) -> _Table:
    """Return the rows of a file with tabs, with quotation marks as ordinary characters if that divides it better."""
    joins_lines = any("\n" in value for values in quoted.rows for value in values)
    uneven = quoted.uneven()
    if not (quoted.failure is not None or uneven or joins_lines):
        return quoted
    plain = _read(path, "\t", None, is_quoted=False)
    if quoted.failure is None and plain.uneven() >= max(uneven, 1):
        return quoted
    logger.info("%s: quotation marks are read as text, because they do not enclose whole values in all rows", path)
    return plain


def _without_escapes(path: Path, delimiter: str, table: _Table) -> _Table:
    """Return the rows of a file without the backslashes before quotation marks, if these can be nothing else."""
    if not _is_escaped(path, delimiter):
        return table
    escaped = _read(path, delimiter, None, is_quoted=True, is_escaped=True)
    if escaped.failure is not None or escaped.uneven():
        return table
    logger.info("%s: a backslash before a quotation mark or delimiter is read as no part of the value", path)
    return escaped


def _is_escaped(path: Path, delimiter: str) -> bool:
    """Return True if the writer of a file put backslashes before quotation marks instead of doubling them.

    Then a backslash precedes only what has to be escaped, and other quotation marks are at the ends of values.
    """
    with open_text(path) as file:
        if not any('\\"' in line for line in file):
            return False
    escapable, inner = {'"', "\\", delimiter, ""}, re.compile(rf'[^{re.escape(delimiter)}]"[^{re.escape(delimiter)}]')
    with open_text(path) as file:
        for line in file:
            text = line.rstrip("\r\n")
            if not escapable.issuperset(_ESCAPED.findall(text)) or inner.search(_ESCAPED.sub("", text)):
                return False
    return True


def _is_spaced(path: Path, delimiter: str) -> bool:
    """Return True if a space follows each delimiter of the first line, so that it belongs to the delimiter."""
    with open_text(path) as file:
        first = next((line for line in (file.readline() for _ in range(3)) if delimiter in line), "")
    return delimiter in first and all(name.startswith(" ") for name in first.split(delimiter)[1:])


def _separator_line(values: Sequence[str]) -> bool:
    """Return True for the line `sep=;` that Excel writes above the header; its delimiter divides it in two."""
    return values[0].startswith("sep=") and len(values[0]) <= 5 and not any(values[1:])


def _find_delimiter(path: Path, default: str) -> str:
    """Return the delimiter of a file: `default`, unless the first line names or contains only another one."""
    with open_text(path) as file:
        lines = [line for line in (file.readline() for _ in range(3)) if line.strip()]
    if not lines:
        return default
    first = lines[0].strip("\r\n")
    if first.startswith("sep=") and len(first) == 5:
        return first[4]
    widths = {delimiter: [_width(line, delimiter) for line in lines[:2]] for delimiter in DELIMITERS}
    if widths[default][0] > 1:
        return default
    candidates = [name for name, (width, *next_widths) in widths.items() if width > 1 and set(next_widths) <= {width}]
    if len(candidates) != 1:
        return default
    logger.info("%s: the values are separated by %r, not by %r", path, candidates[0], default)
    return candidates[0]


def _width(line: str, delimiter: str) -> int:
    """Return the number of values of a line."""
    return len(next(csv.reader([line], delimiter=delimiter), []))
