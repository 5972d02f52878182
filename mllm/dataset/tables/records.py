"""Rows of a json, jsonl, csv, tsv or Parquet file or another table, each with the line on which it stands."""

from __future__ import annotations

import csv
import json
import os
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mllm.dataset.tables.arrow import ARROW_FOLDER, ARROW_SPLITS, ArrowRows, is_hub_name
from mllm.errors import DataError, near

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_CHUNK = 4 * 1024 * 1024
"""Bytes per read while indexing: larger reads are no faster, smaller ones cost more calls."""
_BOM = b"\xef\xbb\xbf"


class _Rows(Protocol):
    def __len__(self) -> int: ...

    def row(self, index: int) -> Any:
        """The row, which need not be a dict; raises `ValueError` with the reason where it cannot be read."""
        ...

    def line(self, index: int) -> int:
        """The line on which the row begins, from 1."""
        ...


class Records:
    """The rows of a file as dicts: `len`, `[i]`, and `describe(i)`, which gives `FILE, line N`.

    `.jsonl` holds an object a line and is read row by row from an index of byte offsets, so that its size does not
    matter; `.json` holds a list of objects, `{"data": [...]}`, or objects by their ids; `.csv` and `.tsv` name their
    columns first, unless `columns` does. `.parquet`, a folder written by `datasets`, and `ORG/NAME` on the Hub are
    mapped into memory; `split` chooses in the last two. Blank lines are no rows. Raises `DataError` for what is
    missing, empty or malformed.
    """

    def __init__(self, path: str | Path, split: str | None = None, columns: Sequence[str] | None = None) -> None:
        self.path = Path(path).expanduser()
        try:
            self._rows = self._open(split, columns)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is not UTF-8 text ({error.reason})") from error
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        if not len(self._rows):
            raise DataError(f"{self.path} is empty")

    def _open(self, split: str | None, columns: Sequence[str] | None) -> _Rows:
        """The rows behind the path, by what it is."""
        folder = self.path
        if is_hub_name(folder) or (folder / ARROW_FOLDER).is_file() or (folder / ARROW_SPLITS).is_file():
            return ArrowRows(folder, split)
        _check_path(folder)
        if split is not None:
            raise DataError(f"split='{split}' belongs to tables of several splits; {folder} has none")
        suffix = folder.suffix.lower()
        if suffix in (".csv", ".tsv"):
            return _Csv(folder, "\t" if suffix == ".tsv" else ",", columns)
        kinds: dict[str, Callable[[Path], _Rows]] = {".jsonl": _JsonLines, ".json": _JsonList, ".parquet": ArrowRows}
        return kinds[suffix](folder)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self._checked(index)
        try:
            row = self._rows.row(index)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.describe(index)}: not UTF-8 text ({error.reason})") from error
        except ValueError as error:
            raise DataError(f"{self.describe(index)}: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{self.describe(index)}: a row must be an object {{...}}, not a {type(row).__name__}")
        return row

    def describe(self, index: int) -> str:
        """Where a row stands: `FILE, line N`."""
        index = self._checked(index)
        line = self._rows.line(index)
        beside = [other for other in (index - 1, index + 1) if 0 <= other < len(self)]
        # A json file may be a single line: then the line alone says nothing.
        shared = any(self._rows.line(other) == line for other in beside)
        return f"{self.path}, line {line}" + (f" (row {index + 1})" if shared else "")

    def _checked(self, index: int) -> int:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"row {index} of {count}")
        return int(index) % count


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"data_path {path} is a folder: name the file in it that holds the rows")
    if not path.exists():
        tail = f" (nor does its folder {path.parent})" if not path.parent.is_dir() else ""
        if not tail:
            names = [entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in SUFFIXES]
            matches = near(path.name, names)
            tail = (
                f": did you mean {' or '.join(repr(str(path.with_name(name))) for name in matches)}?" if matches else ""
            )
        raise DataError(f"data_path {path} does not exist{tail}")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"data_path {path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


class _JsonLines:
    """An object a line, found by its byte offset; one file descriptor, read with `os.pread`, serves every process.

    `os.pread` keeps no position, so a forked worker can share the descriptor; a spawned one opens its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self.offsets, self.lines = _index(self._open())
        """Where each line begins, and the end; the lines that are rows (None: all), from 0."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _open(self) -> int:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
        return self._file

    def __len__(self) -> int:
        return len(self.offsets) - 1 if self.lines is None else len(self.lines)

    def line(self, index: int) -> int:
        return (index if self.lines is None else int(self.lines[index])) + 1

    def row(self, index: int) -> Any:
        line = self.line(index) - 1
        start, end = int(self.offsets[line]), int(self.offsets[line + 1])
        return _parse(os.pread(self._open(), end - start, start).decode("utf-8-sig"))


def _index(file: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The offsets of a file's lines [lines + 1] and, where some are blank, the numbers of those that are not."""
    starts, heads, at, fresh = [], [], 0, True
    while chunk := os.pread(file, _CHUNK, at):
        data = np.frombuffer(chunk, np.uint8)
        begin = np.flatnonzero(data == 10) + 1
        ends_line = bool(len(begin)) and int(begin[-1]) == len(data)
        begin = np.concatenate([np.zeros(int(fresh), begin.dtype), begin[: len(begin) - ends_line]])
        starts.append(begin + at)
        heads.append(data[begin])
        at, fresh = at + len(chunk), ends_line
    offsets = np.concatenate([*starts, np.array([at])])
    head = np.concatenate(heads) if heads else np.zeros(0, np.uint8)
    blank = head == 10
    # A line that begins with white space, or with a byte order mark, may be blank beyond its first byte.
    for line in np.flatnonzero((head <= 32) & ~blank | (head == _BOM[0])):
        text = os.pread(file, int(offsets[line + 1] - offsets[line]), int(offsets[line]))
        blank[line] = not text.removeprefix(_BOM).strip()
    return offsets, np.flatnonzero(~blank) if blank.any() else None


def _parse(text: str) -> Any:
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno})") from error
    except RecursionError:
        raise ValueError("not valid JSON (nested too deeply)") from None


class _JsonList:
    """A list of objects, or objects by their ids, each with the line on which it begins."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8-sig")
        self.rows: list[Any] = []
        self.lines: list[int] = []
        if not text.strip():
            return
        try:
            whole = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
        if isinstance(whole, dict) and isinstance(whole.get("data"), list):
            start, self.rows = _find_list(text, whole["data"]), whole["data"]
        elif isinstance(whole, list):
            start, self.rows = text.index("["), whole
        elif isinstance(whole, dict) and whole and all(isinstance(row, dict) for row in whole.values()):
            start, self.rows = text.index("{"), list(whole.values())
        else:
            raise DataError(f'{path} must hold a list of objects, {{"data": [...]}}, or objects by their ids')
        self.lines = list(_lines_of_items(text, start))
        if len(self.lines) > len(self.rows):
            raise DataError(f"{path}: an id stands twice in it; give every row its own")

    def __len__(self) -> int:
        return len(self.rows)

    def line(self, index: int) -> int:
        return self.lines[index]

    def row(self, index: int) -> Any:
        return self.rows[index]


def _find_list(text: str, rows: list[Any]) -> int:
    """Where the list under the key "data" begins: the first such place that holds these rows."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r'"data"\s*:\s*(?=\[)', text):
        if decoder.raw_decode(text, match.end())[0] == rows:
            return match.end()
    return text.index("[")


def _lines_of_items(text: str, start: int) -> Iterator[int]:
    """The line of every item of the JSON list, or of the JSON object of objects, that begins at `start`."""
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,]*")
    line, seen, at = 1, 0, space.match(text, start + 1).end()  # type: ignore[union-attr]
    while text[at] not in "]}":
        line, seen = line + text.count("\n", seen, at), at
        yield line
        if text[start] == "{":  # the value follows its name
            at = text.index("{", decoder.raw_decode(text, at)[1])
        at = space.match(text, decoder.raw_decode(text, at)[1]).end()  # type: ignore[union-attr]


class _Csv:
    """Values between commas or tabs with column names; between commas, a quoted value may hold line breaks."""

    def __init__(self, path: Path, delimiter: str = ",", columns: Sequence[str] | None = None) -> None:
        self.rows: list[tuple[str, ...]] = []
        self.lines: list[int] = []
        self.names: list[str] = list(columns or ())
        # In a tsv a quotation mark is a character like any other.
        quoting: Any = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader, before = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True), 0
            try:
                for values in reader:
                    self._add(values, before + 1, path)
                    before = reader.line_num
            except csv.Error as error:
                raise DataError(f"{path}, line {before + 1}: not valid CSV ({error})") from error

    def _add(self, values: list[str], line: int, path: Path) -> None:
        if not any(value.strip() for value in values):
            return
        if not self.names:
            self.names = [name.strip() for name in values]
            twice = [name for name in self.names if self.names.count(name) > 1]
            if twice:
                raise DataError(f"{path}, line {line}: column '{twice[0]}' stands twice")
            return
        self.rows.append(tuple(values))
        self.lines.append(line)

    def __len__(self) -> int:
        return len(self.rows)

    def line(self, index: int) -> int:
        return self.lines[index]

    def row(self, index: int) -> dict[str, str]:
        values = self.rows[index]
        if len(values) != len(self.names):
            raise ValueError(f"{len(values)} values where the first line names {len(self.names)}")
        return dict(zip(self.names, values, strict=True))
