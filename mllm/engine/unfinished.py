"""Files of unfinished evaluations, to which predictions are appended as they come."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mllm.files import explained_write, json_line
from mllm.run_files import UNFINISHED

Record = Mapping[str, Any]
"""The `index` of a row, and its `row` with the prediction, or the message `skipped` of a row that cannot be used."""
FINGERPRINT = "evaluation"
"""Key of the first line of a file: the fingerprint of the evaluation."""
STEM = "predictions"
"""Name of an evaluation in its own folder."""
_OFFSET_BITS = 48
"""Bits of a place that are the offset of a line in its file; the others are the number of the file."""


class UnfinishedPredictions:
    """Predictions of an evaluation that has not ended, in one file for each process.

    The first line of a file is the fingerprint of the evaluation, each further line a record. A process may be killed
    at any moment: a line that is incomplete is ignored, and its row is answered again.

    Args:
        folder: Folder of the files, which all processes share. It is created with the first file.
        fingerprint: Digests of what the answers depend on, by their names in messages.
        process: Number of this process.
        stem: Name of the evaluation.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, str], process: int = 0, stem: str = STEM) -> None:
        self.folder, self.fingerprint, self.stem = folder, dict(fingerprint), stem
        self.path = folder / f"{stem}{UNFINISHED}{process}.jsonl"
        self._descriptor: int | None = None

    def difference(self) -> str | None:
        """Return the name of something that differs from the evaluation in the folder; None without a difference."""
        for path in unfinished_files(self.folder, self.stem):
            for _, line in _lines(path):
                if (former := line.get(FINGERPRINT)) is None:
                    continue
                names = [name for name in self.fingerprint | former if former.get(name) != self.fingerprint.get(name)]
                if names:
                    return names[0]
        return None

    def records(self) -> Iterator[Record]:
        """Yield the records of all processes. A row may have several, which are equal."""
        for path in unfinished_files(self.folder, self.stem):
            for _, line in _lines(path):
                if "index" in line:
                    yield line

    def ordered(self, rows: int, with_skipped: bool) -> OrderedRecords:
        """Return the last record of each row in the order of the split.

        Args:
            rows: Number of rows of the split.
            with_skipped: Rows may be skipped. Otherwise only records with an answer count.
        """
        return OrderedRecords(unfinished_files(self.folder, self.stem), rows, with_skipped)

    def open(self) -> bool:
        """Open the file of this process, and lock it until the process ends or the file is closed.

        Returns:
            False if another command writes to it.
        """
        with explained_write(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        if not _lock(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        size = os.fstat(descriptor).st_size
        # An incomplete line of a killed process gets an end of its own.
        start = "\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else ""
        try:
            self._write(start + json_line({FINGERPRINT: self.fingerprint}))
        except OSError:
            self.close()
            raise
        return True

    def append(self, records: Iterable[Record]) -> None:
        """Append records to the file of this process."""
        if text := "".join(map(json_line, records)):
            self._write(text)

    def close(self) -> None:
        """Close the file of this process. Remove it if it has no record, and then its folder if that is empty."""
        if self._descriptor is None:
            return
        os.close(self._descriptor)
        self._descriptor = None
        if self.path.is_file() and not any("index" in line for _, line in _lines(self.path)):
            self.path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def remove(self) -> None:
        """Remove the files of all processes."""
        remove_unfinished(self.folder, self.stem)

    def _write(self, text: str) -> None:
        assert self._descriptor is not None
        data = text.encode("utf-8")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from error


class OrderedRecords:
    """Records in the order of a split, which are read again for each pass; 9 bytes a row are in memory.

    Args:
        paths: The files.
        rows: Number of rows of the split.
        with_skipped: See `UnfinishedPredictions.ordered`.
    """

    def __init__(self, paths: Sequence[Path], rows: int, with_skipped: bool) -> None:
        self._paths = paths
        self._places = np.full(rows, -1, np.int64)
        self._has_answer = np.zeros(rows, bool)
        for number, path in enumerate(paths):
            for offset, record in _lines(path):
                if "row" in record or (with_skipped and "index" in record):
                    self._places[record["index"]] = number << _OFFSET_BITS | offset
                    self._has_answer[record["index"]] = "row" in record

    def answered(self, parts: int = 1) -> np.ndarray:
        """Return the indices of the rows that have an answer in each part, increasing; for `parts` see `together`."""
        return np.flatnonzero(self._has_answer.reshape(parts, -1).all(axis=0))

    def skipped(self, parts: int = 1) -> np.ndarray:
        """Return the indices of the rows that were skipped in a part, increasing; for `parts` see `together`."""
        return np.flatnonzero((~self._has_answer & (self._places >= 0)).reshape(parts, -1).any(axis=0))

    def chosen(self, indices: np.ndarray) -> Iterator[Record]:
        """Yield the records of rows of the split, which have records."""
        return (record for (record,) in self.together(1, indices))

    def together(self, parts: int, indices: np.ndarray) -> Iterator[list[Record]]:
        """Yield the records of a row in each part, for some rows of a part.

        Args:
            parts: Number of parts of equal size that the rows are divided into. Rows without a record are left out.
            indices: Indices of rows in a part.
        """
        with ExitStack() as opened:
            # Those without a record may be gone: their processes remove them.
            used = np.unique(self._places[self._places >= 0] >> _OFFSET_BITS).tolist()
            files = {number: opened.enter_context(self._paths[number].open("rb")) for number in used}
            for places in self._places.reshape(parts, -1).T[indices]:
                records = []
                for place in places[places >= 0].tolist():
                    file = files[place >> _OFFSET_BITS]
                    file.seek(place & ((1 << _OFFSET_BITS) - 1))
                    records.append(json.loads(file.readline()))
                yield records


def unfinished_files(folder: Path, stem: str = STEM) -> list[Path]:
    """Return the files of an unfinished evaluation in a folder, in the order of the processes."""
    start = f"{stem}{UNFINISHED}"
    files = folder.glob(f"{start}*.jsonl") if folder.is_dir() else ()
    return sorted(files, key=lambda path: (len(path.name), path.name))


def remove_unfinished(folder: Path, stem: str = STEM) -> None:
    """Remove the files of an unfinished evaluation from a folder."""
    for path in unfinished_files(folder, stem):
        path.unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the offset of each line of a file and the object in it, without incomplete lines.

    A process without records removes its file when it closes it, which may be now.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        end = 0
        for line in file:
            start, end = end, end + len(line)
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield start, value


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed. Return False if another process holds the lock.

    The lock ends with its process, so that a killed process does not hold it.
    """
    if sys.platform == "win32":
        return True  # it has no such locks
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN)  # others: a file system without locks
    return True
