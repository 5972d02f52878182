"""Rows of JSON and JSON lines files."""

from __future__ import annotations

import json
import logging
import os
import re
import weakref
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mllm.dataset.tables.json_stream import JsonStream
from mllm.dataset.tables.packed import PackedRows
from mllm.dataset.tables.text_files import is_plain, open_text, read_text
from mllm.errors import DataError

logger = logging.getLogger(__name__)

_CHUNK = 4 * 1024 * 1024
"""Bytes per read during indexing; larger reads are not faster."""
_BOM = b"\xef\xbb\xbf"


class JsonLines:
    """Rows of a `.jsonl` file, found by their byte offsets.

    All processes share one file descriptor: `os.pread` has no file position. A spawned process opens its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self.offsets, self.lines = _index(self._open())
        """Offsets of the lines and of the end of the file [lines + 1]; line numbers of the rows from 0, None: all."""

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
        """Return the line of a row, from 1."""
        return (index if self.lines is None else int(self.lines[index])) + 1

    def row(self, index: int) -> Any:
        """Read and parse a row; raise `ValueError` if it is not valid JSON."""
        line = self.line(index) - 1
        start, end = int(self.offsets[line]), int(self.offsets[line + 1])
        text = os.pread(self._open(), end - start, start).decode()
        return _parse_line(text.removeprefix("\ufeff") if line == 0 else text)


class TextLines:
    """Rows of JSON lines in memory, for files that are compressed or in another encoding than UTF-8."""

    def __init__(self, path: Path) -> None:
        self.lines, self.texts = array("q"), PackedRows()
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self.lines.append(number)
                    self.texts.append(line)

    def __len__(self) -> int:
        return len(self.lines)

    def line(self, index: int) -> int:
        """Return the line of a row, from 1."""
        return self.lines[index]

    def row(self, index: int) -> Any:
        """Parse a row; raise `ValueError` if it is not valid JSON."""
        return _parse_line(self.texts[index])


def _parse_line(text: str) -> Any:
    """Parse a line; raise `ValueError` if it is not valid JSON."""
    try:
        return _LINE.decode(text.rstrip())
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno})") from error
    except RecursionError:
        raise ValueError("not valid JSON (nested too deeply)") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. Raise `ValueError` for two values of one key, of which `json` would drop the first."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object has a duplicate key, or two rows have the same id")
    return values


_LABEL = re.compile(r"-?\d[-\d.:TZ+]*")
"""Label of a row in the index of pandas: a number, or a date."""
_FIELDS = frozenset(("image", "images", "question", "answer", "label", "text", "conversations", "messages"))
"""Names of columns by which an object of columns is told from an object of rows."""
_LINE = json.JSONDecoder(object_pairs_hook=_unique_keys)
"""Decoder of lines; creating one takes as long as decoding a short line."""


def open_json(path: Path) -> JsonLines | TextLines | JsonList:
    """Return the rows of a `.json` file; a file of JSON lines is read as such."""
    try:
        return JsonList(path)
    except DataError:
        lines = _open_lines(path)
        if len(lines) > 1 and _is_object(lines):
            logger.info("%s has JSON lines, one object per line, and is read as such", path)
            return lines
        raise


def open_json_lines(path: Path) -> JsonLines | TextLines | JsonList:
    """Return the rows of a `.jsonl` file; a file with one list or object over several lines is read as `.json`."""
    lines = _open_lines(path)
    if not len(lines) or _is_object(lines):
        return lines
    try:
        rows = JsonList(path)
    except DataError:
        return lines  # the message about a bad row has its line
    logger.info("%s has one JSON value instead of one object per line, and is read as .json", path)
    return rows


def _open_lines(path: Path) -> JsonLines | TextLines:
    return JsonLines(path) if is_plain(path) else TextLines(path)


def _is_object(lines: JsonLines | TextLines) -> bool:
    """Return True if the first row is an object."""
    try:
        return isinstance(lines.row(0), dict)
    except ValueError:
        return False


def _index(file: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the byte offsets of the lines of a file [lines + 1] and the non-blank lines, None if none is blank."""
    starts, first_bytes, position, is_new_line = [], [], 0, True
    while chunk := os.pread(file, _CHUNK, position):
        data = np.frombuffer(chunk, np.uint8)
        begin = np.flatnonzero(data == 10) + 1
        ends_line = bool(len(begin)) and int(begin[-1]) == len(data)
        begin = np.concatenate([np.zeros(int(is_new_line), begin.dtype), begin[: len(begin) - ends_line]])
        starts.append(begin + position)
        first_bytes.append(data[begin])
        position, is_new_line = position + len(chunk), ends_line
    offsets = np.concatenate([*starts, np.array([position])])
    first = np.concatenate(first_bytes) if first_bytes else np.zeros(0, np.uint8)
    blank = first == 10
    # Lines that begin with white space or a byte order mark are blank only if nothing else follows.
    for line in np.flatnonzero((first <= 32) & ~blank | (first == _BOM[0])):
        text = os.pread(file, int(offsets[line + 1] - offsets[line]), int(offsets[line]))
        blank[line] = not text.removeprefix(_BOM).strip()
    return offsets, np.flatnonzero(~blank) if blank.any() else None


class JsonList:
    """Rows of a `.json` file, with the line on which each row begins.

    The file holds a list of objects, `{"data": [...]}`, an object that maps ids to objects, or columns as pandas
    writes them (`orient` 'columns' and 'split').
    """

    def __init__(self, path: Path) -> None:
        self.rows, self.lines = PackedRows(), array("q")
        if self._read_list(path):
            return
        text = read_text(path)
        if not text.strip():
            return
        try:
            content = json.loads(text, object_pairs_hook=_unique_keys)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        except RecursionError:
            raise DataError(f"{path} is not valid JSON (nested too deeply)") from None
        if isinstance(content, dict) and isinstance(content.get("data"), list):
            start, self.rows = _find_list(text, content["data"]), PackedRows(_named(content))
        elif _has_columns(content, path):
            labels = list(next(iter(content.values())))
            self.rows = PackedRows({name: values[label] for name, values in content.items()} for label in labels)
            self.lines = array("q", [1] * len(labels))  # a row is in no single place
            if labels != list(map(str, range(len(labels)))):
                logger.info("%s: the index of its rows in pandas, such as %s, is left out", path, labels[0])
            return
        elif isinstance(content, list):
            start, self.rows = text.index("["), PackedRows(content)
        elif isinstance(content, dict) and content and all(isinstance(row, dict) for row in content.values()):
            start, self.rows = text.index("{"), PackedRows(content.values())
        else:
            raise DataError(f'{path} must be a list of objects, {{"data": [...]}}, or an object of ids and objects')
        self.lines = array("q", _lines_of_items(text, start))

    def _read_list(self, path: Path) -> bool:
        """Read a list item by item, so that only one of them is in memory; return False for any other text."""
        rows, lines = PackedRows(), array("q")
        try:
            with open_text(path) as file:
                for line, row in JsonStream(file, _LINE).items():
                    rows.append(row)
                    lines.append(line)
        except (ValueError, RecursionError):
            return False  # the message is that of the whole text
        self.rows, self.lines = rows, lines
        return len(rows) > 0

    def __len__(self) -> int:
        return len(self.rows)

    def line(self, index: int) -> int:
        """Return the line on which a row begins, from 1."""
        return self.lines[index]

    def row(self, index: int) -> Any:
        """Return a row."""
        return self.rows[index]


def _named(content: dict[str, Any]) -> list[Any]:
    """Return the rows of an object with `data`; lists of values get the names of its `columns`."""
    names, rows = content.get("columns"), content["data"]
    if not isinstance(names, list) or not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        return list(rows)
    return [dict(zip(map(str, names), row, strict=True)) for row in rows]


def _has_columns(content: Any, path: Path) -> bool:
    """Return True for an object of columns, each of which maps the labels of all rows to values.

    Labels are numbers or dates, which no field of a row has as its name.

    Raises:
        DataError: The labels are texts, of which nobody can say that they are not the fields of rows.
    """
    if not isinstance(content, dict) or not content or not all(isinstance(item, dict) for item in content.values()):
        return False
    labels = next(iter(content.values())).keys()
    if not labels or any(item.keys() != labels for item in content.values()):
        return False
    if all(map(_LABEL.fullmatch, labels)):
        return True
    if _FIELDS & content.keys() and not _FIELDS & labels:
        raise DataError(
            f"{path} seems to have columns whose rows have names, as pandas writes them with an index: write it with "
            "frame.reset_index().to_json(path, orient='records')"
        )
    return False


def _find_list(text: str, rows: list[Any]) -> int:
    """Return the position of the list under the key "data": the first such list that is equal to `rows`."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r'"data"\s*:\s*(?=\[)', text):
        if decoder.raw_decode(text, match.end())[0] == rows:
            return match.end()
    return text.index("[")


def _lines_of_items(text: str, start: int) -> Iterator[int]:
    """Yield the line of every item of the JSON list, or the JSON object of objects, that begins at `start`."""
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,]*")
    line, counted, position = 1, 0, space.match(text, start + 1).end()  # type: ignore[union-attr]
    while text[position] not in "]}":
        line, counted = line + text.count("\n", counted, position), position
        yield line
        if text[start] == "{":  # skip the key
            position = text.index("{", decoder.raw_decode(text, position)[1])
        position = space.match(text, decoder.raw_decode(text, position)[1]).end()  # type: ignore[union-attr]
