"""Detection of images that change between epochs, such as those of random transforms."""

from __future__ import annotations

from mllm.dataset.base import SampleDataset
from mllm.errors import UserError

COMPARED_ROWS = 16
"""Rows of a split, evenly spaced, whose images are compared between two epochs."""


def has_changing_images(split: SampleDataset) -> bool:
    """Return True if images of any dataset in a split differ between two epochs, in the rows that are compared."""
    rows = list(split.rows())
    first_rows = {id(leaf): (leaf, index) for leaf, index in reversed(rows)}
    count = min(len(rows), COMPARED_ROWS)
    spaced = [rows[number * len(rows) // count] for number in range(count)]
    for leaf, index in [*first_rows.values(), *spaced]:
        try:
            first, second = ([image.tobytes() for image in leaf.sample(index, epoch).images] for epoch in (0, 1))
        except UserError:
            continue
        if first != second:
            return True
    return False
