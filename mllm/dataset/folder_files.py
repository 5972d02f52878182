"""Names of the files below a folder, in the memory of some tens of bytes a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from mllm.dataset.tables.packed import PackedRows
from mllm.errors import DataError
from mllm.private_messages import PublicText

logger = logging.getLogger(__name__)

_MAC = "__MACOSX"
"""Folder that macOS adds to archives, with a file of metadata for each file."""


def is_hidden(name: str) -> bool:
    """Return True for files that programs keep beside the data, such as `.DS_Store`, and for all below such a folder.

    Args:
        name: Name of a file or folder, or a relative path with `/`.
    """
    return any(part == _MAC or (part.startswith(".") and part not in (".", "..")) for part in name.split("/"))


def files_below(folder: str | Path) -> Iterator[str]:
    """Yield the files below a folder, relative to it with `/`, in the order of the parts of their paths.

    Hidden files and folders are left out. The names of one folder at a time are in memory.

    Raises:
        DataError: A folder cannot be read, or has a link to a folder above it.
    """
    return _files(Path(folder), "", (os.path.realpath(folder),))


def _files(root: Path, below: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the files of the folder `below`, which is empty or ends with `/`; `above` are the real paths to it."""
    place = os.path.join(root, below)
    names, folders = list[str](), dict[str, bool]()
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if not is_hidden(entry.name):
                    names.append(entry.name)
                    if entry.is_dir():
                        folders[entry.name] = entry.is_symlink()
    except OSError as error:
        raise DataError(f"folder {place} cannot be read: {error.strerror or error}") from error
    for name in sorted(names):
        if name not in folders:
            yield below + name
            continue
        path = os.path.join(above[-1], name)
        real = os.path.realpath(path) if folders[name] else path
        if real in above:
            raise DataError(f"folder {os.path.join(place, name)} is a link to a folder above it: remove the link")
        yield from _files(root, f"{below}{name}/", (*above, real))


class NamedFiles:
    """Files that are found by a key of their names. A file takes 17 bytes and its compressed name.

    Args:
        names: Names of the files.
        key_of: Function of a name that returns its key.
    """

    def __init__(self, names: Iterable[str], key_of: Callable[[str], str]) -> None:
        self.names, self._key_of = PackedRows(names), key_of
        hashes = np.fromiter((hash(key_of(name)) for name in self.names), np.int64, len(self.names))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._is_found = np.zeros(len(hashes), bool)

    def find(self, key: str) -> list[str]:
        """Return the files with a key, in their order."""
        value = hash(key)
        start, end = (int(np.searchsorted(self._hashes, value, side=side)) for side in ("left", "right"))
        found = [int(number) for number in self._order[start:end] if self._key_of(self.names[int(number)]) == key]
        self._is_found[found] = True
        return [self.names[number] for number in found]

    def not_found(self) -> list[int]:
        """Return the numbers of the files that `find` never returned."""
        return [int(number) for number in np.flatnonzero(~self._is_found)]


class OtherFiles:
    """Files of a folder that are not used, for one warning.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count, self.first = folder, 0, ""

    def add(self, name: str) -> None:
        """Add a file below the folder."""
        self.first = name if not self.count else self.first
        self.count += 1

    def report(self, fault: str) -> None:
        """Log the number of the files, `fault`, and the first one, if there is one."""
        if self.count:
            example = os.path.join(self.folder, self.first)
            logger.warning("%s: %d %s, for example %s", self.folder, self.count, PublicText(fault), example)
