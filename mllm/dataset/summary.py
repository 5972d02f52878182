"""Summary of the data of a run: counts, dropped rows, and statistics of the measures of every split."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from mllm.dataset.base import SampleDataset
from mllm.dataset.checking import SplitReport, Splits


def summarize(splits: Splits) -> dict[str, Any]:
    """Return for each split its counts, modalities, source datasets, and statistics of its measures.

    All values are plain, for a report in JSON. The standard deviation is that of the values (ddof 0).
    """
    return {
        name: figures
        | {
            "modalities": dict(splits.reports[name].modalities.most_common()),
            "sources": _summaries(splits[name], splits.reports[name]),
            "measures": {key: _statistics(values) for key, values in splits.measure_tables[name].items()},
        }
        for name, figures in counts(splits).items()
    }


def counts(splits: Splits) -> dict[str, dict[str, Any]]:
    """Return the numbers of samples, patients and skipped rows of each split."""
    return {
        name: {
            "samples": len(dataset),
            "patients": splits.reports[name].patients,
            "samples without a patient": splits.reports[name].without_patient,
            "skipped": len(splits.reports[name].skipped),
        }
        for name, dataset in splits.items()
    }


def _summaries(dataset: SampleDataset, report: SplitReport) -> list[dict[str, Any]]:
    """Return the summaries of the source datasets of a split, with the number of skipped rows of each."""
    sources = _sources(dataset)
    only = sources[0] if len(sources) == 1 else None
    skipped = Counter(id(only or source) for source in report.skipped.values())
    summaries = []
    for source in sources:
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
