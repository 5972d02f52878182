"""Rows that stand in two splits: the same images with the same question and answer."""

from __future__ import annotations

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

    def add(self, sample: Sample) -> None:
        """Add a row. One without texts, or with images that are no files, cannot be compared and is left out."""
        images = [image for image in sample.images if isinstance(image, UndecodedImage)]
        if not sample.turns or len(images) < len(sample.images):
            return
        places = [(os.path.abspath(place), *others) for place, *others in (image.name for image in images)]
        self._hashes.append(hash((*places, *((turn.role, turn.text) for turn in sample.turns))))

    def unique(self) -> np.ndarray:
        """Return the different hashes, sorted."""
        return np.unique(np.array(self._hashes, np.int64))


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
