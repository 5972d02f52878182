"""Volumes that a text header describes: checks of the header, and reading of the voxels of one volume."""

from __future__ import annotations

import bz2
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mllm.dataset.readers.faults import unusable
from mllm.dataset.readers.volumes import MAX_VOXELS

MAX_HEADER = 1 << 16
"""Maximum size of a text header in bytes."""
_GZIP_OR_ZLIB = zlib.MAX_WBITS + 32
"""Argument of zlib for streams with a header of gzip or of zlib."""


@dataclass(frozen=True)
class StoredVolume:
    """Header of a volume, or of a series of volumes of one size."""

    path: Path
    """File with the header."""
    data: Path
    """File with the voxels."""
    offset: int
    """Position of the voxels in it; negative: they end with the file."""
    dtype: np.dtype
    shape: tuple[int, int, int]
    """Voxels along the axes I, J and K; I is the fastest."""
    volumes: int
    """Number of volumes."""
    is_first_fastest: bool
    """True if the voxels of different volumes, not those of one volume, follow each other."""
    encoding: str
    """'raw', 'gzip' (or zlib) or 'bzip2'."""
    directions: np.ndarray
    """Directions of I, J and K in RAS, one per column, [3, 3]; unit vectors."""
    spacing: tuple[float, float, float]
    """Sides of a voxel along I, J and K."""
    in_mm: bool
    """True if the header has the sides, in mm; False: they are all 1, or in another unit."""

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.volumes < 1 or math.prod(self.shape) > MAX_VOXELS:
            fault = f"describes a volume without voxels or with more than {MAX_VOXELS:,}: its header is damaged"
            raise unusable(self.path, fault)
        lengths = np.linalg.norm(self.directions, axis=0)
        is_valid = np.isfinite(self.directions).all() and abs(np.linalg.det(self.directions)) > 1e-3
        if not is_valid or abs(lengths - 1).max() > 0.01:
            raise unusable(self.path, "has no orientation: the directions of its header are impossible")
        if not all(math.isfinite(side) and side > 0 for side in self.spacing):
            raise unusable(self.path, "has an impossible spacing")

    @property
    def size(self) -> int:
        """Return the bytes of one volume."""
        return math.prod(self.shape) * self.dtype.itemsize

    def bytes_until(self, volume: int) -> int:
        """Return the bytes from the first voxel to the end of a volume."""
        return self.size * (self.volumes if self.is_first_fastest else volume + 1)

    def read(self, volume: int) -> np.ndarray:
        """Return the voxels of a volume, [I, J, K].

        Raises:
            DataError: The file with the voxels does not exist, or has too few.
        """
        if not self.data.is_file():
            name = self.data.name
            raise unusable(self.path, "is a header without its file of voxels", f": {name} does not exist beside it")
        contents = self._contents(self.bytes_until(volume))
        if self.is_first_fastest:
            values = np.frombuffer(contents, self.dtype).reshape((self.volumes, *self.shape), order="F")
            return np.asarray(values[volume])
        return np.frombuffer(contents[-self.size :], self.dtype).reshape(self.shape, order="F")

    def _contents(self, size: int) -> bytes:
        """Return the first bytes of the voxels, after decompression."""
        available = self.data.stat().st_size
        if self.offset >= 0:
            begin = self.offset
        else:
            begin = available - self.size * self.volumes
            if begin < 0:
                raise self._truncated()
        with self.data.open("rb") as file:
            file.seek(begin)
            # Compression lengthens random bytes by less than 1 %.
            data = file.read(size if self.encoding == "raw" else size + size // 50 + 4096)
        contents = data if self.encoding == "raw" else self._decompressed(data, size)
        if len(contents) < size:
            raise self._truncated()
        return contents

    def _decompressed(self, data: bytes, size: int) -> bytes:
        try:
            if self.encoding == "bzip2":
                return bz2.BZ2Decompressor().decompress(data, size)
            return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(data, size)
        except (zlib.error, OSError, ValueError) as error:
            raise unusable(self.path, "is damaged: its compressed voxels cannot be read") from error

    def _truncated(self) -> Exception:
        return unusable(self.path, "is truncated or damaged: its header describes more voxels than its file has")
