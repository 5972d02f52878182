"""Rows of CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mllm.errors import DataError


class CsvRows:
    """Rows of a CSV or TSV file with named columns, and the line on which each row begins.

    In a CSV file a quoted value may contain line breaks; in a TSV file a quotation mark is an ordinary character.
    """

    def __init__(self, path: Path, delimiter: str = ",", columns: Sequence[str] | None = None) -> None:
        self.rows: list[tuple[str, ...]] = []
        self.lines: list[int] = []
        self.names: list[str] = list(columns or ())
        quoting: Any = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader, previous = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True), 0
            try:
                for values in reader:
                    self._add(values, previous + 1, path)
                    previous = reader.line_num
            except csv.Error as error:
                raise DataError(f"{path}, line {previous + 1}: not valid CSV ({error})") from error

    def _add(self, values: list[str], line: int, path: Path) -> None:
        if not any(value.strip() for value in values):
            return
        if not self.names:
            self.names = [name.strip() for name in values]
            duplicates = [name for name in self.names if self.names.count(name) > 1]
            if duplicates:
                raise DataError(f"{path}, line {line}: duplicate column '{duplicates[0]}'")
            return
        self.rows.append(tuple(values))
        self.lines.append(line)

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
        return dict(zip(self.names, values, strict=True))
