"""What the data of a run holds: counts, what was dropped and why, and the measures of every split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mllm.dataset.base import SampleDataset
from mllm.errors import DataError


def measure_table(dataset: SampleDataset) -> dict[str, np.ndarray]:
    """Every measure of a dataset [N], NaN where unknown; reads no image.

    A row that cannot be read has none.
    """
    rows = []
    for leaf, index in dataset.rows():
        try:
            rows.append(leaf.measures(index))
        except DataError:
            rows.append({})
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def summarize(splits: Mapping[str, SampleDataset], tables: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Return for each split its number of samples, the summaries of its sources, and statistics of its measures.

    `tables` holds the `measure_table` of each split. All values are plain, for a report in JSON. The standard deviation
    is that of the values (ddof 0).
    """
    return {
        name: {
            "samples": len(dataset),
            "sources": [told for leaf in _leaves(dataset) if (told := leaf.summary())],
            "measures": {key: _described(values) for key, values in tables[name].items()},
        }
        for name, dataset in splits.items()
    }


def _leaves(dataset: SampleDataset) -> list[SampleDataset]:
    """The datasets that read files, each once."""
    return list({id(leaf): leaf for leaf, _ in dataset.rows()}.values())


def _described(values: np.ndarray) -> dict[str, float]:
    known = values[~np.isnan(values)]
    figures: dict[str, float] = {"known": len(known), "unknown": len(values) - len(known)}
    if not len(known):
        return figures
    return figures | {
        "mean": float(known.mean()),
        "std": float(known.std()),
        "min": float(known.min()),
        "max": float(known.max()),
    }
