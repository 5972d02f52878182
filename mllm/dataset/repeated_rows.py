"""Rows that stand in two splits: the same images with the same question and answer."""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Mapping

import numpy as np

from mllm.dataset.image_files import UndecodedImage
from mllm.private_messages import PublicText
from mllm.structures import Sample

logger = logging.getLogger(__name__)


class RowHashes:
    """Hashes of the rows of a split: of the places of their images, and of their texts. A row takes 8 bytes."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, identity: int) -> None:
        """Add the identity of a row; see `identity_of`."""
        self._hashes.append(identity)

    def unique(self) -> np.ndarray:
        """Return the different hashes, sorted."""
        return np.unique(np.array(self._hashes, np.int64))


def identity_of(sample: Sample) -> int | None:
    """Return a hash of 64 bits of a row, equal in all processes.

    None: it has no texts, or images that are no files, and cannot be compared.
    """
    images = [image for image in sample.images if isinstance(image, UndecodedImage)]
    if not sample.turns or len(images) < len(sample.images):
        return None
    places = [(os.path.abspath(place), *others) for place, *others in (image.name for image in images)]
    text = repr((places, [(turn.role, turn.text) for turn in sample.turns]))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def warn_of_repeated_rows(rows: Mapping[str, RowHashes]) -> None:
    """Log a warning for two splits with rows in common. `rows` are those of each split."""
    hashes = {name: split.unique() for name, split in rows.items()}
    names = list(hashes)
    for number, name in enumerate(names):
        for other in names[:number]:
            count = int(np.isin(hashes[name], hashes[other], assume_unique=True).sum())
            if count:
                message = (
                    f"{count:,} of {len(hashes[name]):,} different rows of {name} are also in {other}, with the same "
                    f"images, questions and answers: remove them, or {name} measures what was learned by heart"
                )
                logger.warning("%s", PublicText(message))
