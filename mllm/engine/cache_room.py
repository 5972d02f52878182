"""Limit on the size of a cache: room for the features of one model, made from those of other models."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)


class CacheRoom:
    """Number of bytes that one process may still write into the cache of a model.

    The folders of other models in the same cache are removed when the room is used up, those unused for the longest
    time first. A run that still reads one of them computes these features itself.

    Args:
        folder: Folder of the features of a model, inside the folder of the cache.
        limit: Maximum size of the folder of the cache in bytes.
        processes: Number of processes that share the room.
    """

    def __init__(self, folder: Path, limit: int, processes: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # the time of the last use
        others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
        self._others = sorted(others, key=lambda path: -path.stat().st_mtime)
        self._sizes = {path: _size(path) for path in others}
        self._processes = processes
        self.bytes = (limit - _size(folder) - sum(self._sizes.values())) // processes

    def take(self, size: int) -> bool:
        """Return True if a file of `size` bytes may be written, and count it."""
        while self.bytes < size and self._others:
            path = self._others.pop()
            shutil.rmtree(path, ignore_errors=True)  # another process may remove it at the same time
            self.bytes += self._sizes[path] // self._processes
            logger.info("removed %s: stored features of another model, to keep the cache below its limit", path)
        if self.bytes < size:
            return False
        self.bytes -= size
        return True


def _size(folder: Path) -> int:
    """Return the size of the files in a folder in bytes. Files that another process removes are left out."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total
