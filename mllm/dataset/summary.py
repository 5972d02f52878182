"""Summary of the data of a run: counts, dropped rows, and statistics of the measures of every split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from mllm.dataset.base import SampleDataset
from mllm.dataset.checking import SplitReport, Splits
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


def summarize(splits: Splits, tables: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Return for each split its samples, patients and sources, and statistics of its measures.

    `tables` holds the `measure_table` of each split. All values are plain, for a report in JSON. The standard deviation
    is that of the values (ddof 0).
    """
    return {
        name: {
            "samples": len(dataset),
            "patients": splits.reports[name].patients,
            "samples without a patient": splits.reports[name].without_patient,
            "skipped": len(splits.reports[name].skipped),
            "sources": _summaries(dataset, splits.reports[name]),
            "measures": {key: _statistics(values) for key, values in tables[name].items()},
        }
        for name, dataset in splits.items()
    }


def _summaries(dataset: SampleDataset, report: SplitReport) -> list[dict[str, Any]]:
    """Return the summaries of the source datasets of a split, with the number of skipped rows of each."""
    skipped = Counter(id(source) for source, _ in report.skipped)
    summaries = []
    for source in _sources(dataset):
        summary = source.summary() | ({"skipped": count} if (count := skipped[id(source)]) else {})
        if summary:
            summaries.append(summary)
    return summaries


def _sources(dataset: SampleDataset) -> list[SampleDataset]:
    """Return the source datasets of a dataset, each once."""
    return list({id(source): source for source, _ in dataset.rows()}.values())


def _statistics(values: np.ndarray) -> dict[str, float]:
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
