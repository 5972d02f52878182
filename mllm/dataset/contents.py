"""Digest of the contents of a split, by which a resumed run recognizes its training data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from mllm.dataset.image_files import UndecodedImage
from mllm.structures import Mark, Sample

PART = 4096
"""Size in bytes of each part of a file."""
FILES = 16
"""Maximum number of files of an image, such as a DICOM series, of which parts are read."""


class ContentDigest:
    """Digest of the samples of a split in their order: texts, marks, measures, patients and image files.

    Images and masks are not decoded: files are represented by their size in bytes and, where `reads_files` says so, by
    parts of their bytes, and masks of COCO by their polygons or run lengths. Locations of files are left out, so that
    data may be moved.
    """

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, content: bytes) -> None:
        """Add the next sample: its `content_of`."""
        self._digest.update(content)

    def add_unusable(self) -> None:
        """Add the next row, which cannot be used."""
        self._digest.update(b"unusable")

    def hexdigest(self) -> str:
        """Return the digest as text."""
        return self._digest.hexdigest()


def content_of(sample: Sample, reads_files: bool = False) -> bytes:
    """Return the content of a sample, as `SampleDataset.inspect` returns it.

    With `reads_files`, it includes the start, the middle and the end of its files, of at most `FILES` evenly spaced
    ones of an image: uncompressed images of one size have equally long files.
    """
    texts = [(turn.role, turn.text, turn.marks) for turn in sample.turns]
    images = [_file(image) for image in sample.images if isinstance(image, UndecodedImage)]
    marks = [(mark.box, mark.point, mark.image) for mark in sample.marks]
    measures = sorted(sample.measures.items())
    parts = [repr((texts, images, marks, measures, sample.group)).encode("utf-8")]
    for mark in sample.marks:
        parts += _parts_of_mask(mark)
    if reads_files:
        files = [image.files for image in sample.images if isinstance(image, UndecodedImage)]
        spaced = (paths[:: -(-len(paths) // FILES)] for paths in files if paths)
        for path in dict.fromkeys(chain.from_iterable(spaced)):
            parts += _parts_of_file(path)
    return b"".join(parts)


def _parts_of_mask(mark: Mark) -> Iterator[bytes]:
    if mark.undecoded is not None:
        yield repr((mark.undecoded.height, mark.undecoded.width)).encode()
        yield mark.undecoded.content
    if mark.mask is not None:
        yield repr(mark.mask.shape).encode()
        yield mark.mask.tobytes()


def _parts_of_file(path: Path) -> Iterator[bytes]:
    """Yield parts of a file. One that cannot be read is left out: the row is reported when its image is decoded."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for start in (0, size // 2, max(0, size - PART)):
                file.seek(start)
                yield file.read(PART)
    except OSError:
        return


def _file(image: UndecodedImage) -> tuple[int | str, str, int]:
    """Return the size in bytes of the files of an image, the options of its reader, and its number in them."""
    return image.content, repr(sorted(image.options.items())) if image.options else "[]", image.number
