"""Tables of the measures of a dataset, read without images where the class supports it."""

from __future__ import annotations

import numpy as np

from mllm.dataset.base import SampleDataset
from mllm.errors import DataError


def measure_table(dataset: SampleDataset) -> dict[str, np.ndarray]:
    """Return every measure of a dataset [N], NaN where unknown or where a row cannot be read."""
    rows = []
    for source, index in dataset.rows():
        try:
            rows.append(source.measures(index))
        except DataError:
            rows.append({})
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
