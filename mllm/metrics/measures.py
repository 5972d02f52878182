"""Metrics of measures such as EF and volumes: errors, bias and agreement, with bootstrap intervals.

Errors are prediction minus reference, in the unit of the measure: percentage points for EF, mL for volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mllm.contents import stated_measures
from mllm.metrics.base import reads
from mllm.metrics.bootstrap import RESAMPLES, group_numbers, interval
from mllm.metrics.numbers import NORMAL_95
from mllm.registry import METRICS
from mllm.structures import Answer

CATEGORIES = (30.0, 40.0, 50.0)
"""Lower bounds in percent of moderately reduced, mildly reduced and normal EF. Below the first: severely reduced."""
WITH_INTERVAL = ("mae", "rmse", "r2", "bias", "category_agreement")
"""Figures with a 95 % confidence interval."""
_CHUNK = 4_000_000
"""Number of random values of the bootstrap that are drawn at once."""


def measures(
    predicted: Mapping[str, np.ndarray],
    true: Mapping[str, np.ndarray],
    groups: Sequence[str | None],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, float]:
    """Compute the figures of all measures.

    Args:
        predicted: Measure -> predictions [N]; NaN for a missing one.
        true: Measure -> references [N]; NaN for an unknown one.
        groups: Patient of each sample, [N]. None: the sample is a group of its own.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap samples.

    Returns:
        For each measure, such as EF: `EF_mae`, `EF_rmse`, `EF_r2` (coefficient of determination), `EF_bias` (mean
        error), `EF_loa_lower` and `EF_loa_upper` (limits of agreement: bias -/+ 1.96 standard deviations of the error,
        ddof 1), `EF_samples` (with reference), `EF_unknown` (without reference) and `EF_failed` (with reference,
        without prediction). A failed prediction is not left out: it counts as 0 and as the wrong category. Only for EF:
        `EF_category_agreement`, the fraction in the same category of < 30, 30 to 40, 40 to 50 and >= 50 %, and
        `EF_against_volumes`, the mean of |EF - 100 (EDV - ESV) / EDV| over complete predictions. `_ci_low` and
        `_ci_high` after a name are the limits of a 95 % confidence interval, from percentiles of a bootstrap over
        groups.
    """
    result: dict[str, float] = {}
    for name, references in true.items():
        reference = np.asarray(references, float)
        prediction = np.asarray(predicted.get(name, np.full(len(reference), np.nan)), float)
        assert prediction.shape == reference.shape == (len(groups),)
        known = np.isfinite(reference)
        failed = known & ~np.isfinite(prediction)
        sums = _sums(
            np.where(failed, 0.0, prediction)[known],
            reference[known],
            [group for group, is_known in zip(groups, known, strict=True) if is_known],
            failed[known],
        )
        figures = _figures(sums.sum(axis=0))
        if name != "EF":
            del figures["category_agreement"]
        bootstrap = _resampled(sums, seed, resamples)
        for figure, value in figures.items():
            result[f"{name}_{figure}"] = float(value)
            if figure in WITH_INTERVAL:
                result[f"{name}_{figure}_ci_low"], result[f"{name}_{figure}_ci_high"] = interval(bootstrap[figure])
        result[f"{name}_samples"] = int(known.sum())
        result[f"{name}_unknown"] = int((~known).sum())
        result[f"{name}_failed"] = int(failed.sum())
    if {"EF", "EDV", "ESV"} <= predicted.keys() and "EF" in true:
        result["EF_against_volumes"] = _inconsistency(*(np.asarray(predicted[name]) for name in ("EF", "EDV", "ESV")))
    return result


@METRICS.register_module(name="measures")
@reads("measures")
def answered_measures(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Compute error, bias, limits of agreement and EF categories of the measures in answers; see `measures`.

    Measures are those of a head. For an answer without them, they are read from its text (`EF 58.4 %, EDV 120.3 mL`).
    A text that cannot be read counts as a failed prediction, see `measures`. The groups of the references are patients.
    """
    assert len(predictions) == len(references)
    predicted, true = (
        [answer.measures or stated_measures(answer.text) for answer in answers] for answers in (predictions, references)
    )
    names = dict.fromkeys(name for row in true for name in row)

    def table(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}

    return measures(table(predicted), table(true), [reference.group for reference in references])


def categories(ef: np.ndarray) -> np.ndarray:
    """Return the category of each EF in percent, from 0 (below 30) to 3 (50 and above)."""
    return np.digitize(ef, CATEGORIES)


def _inconsistency(ef: np.ndarray, edv: np.ndarray, esv: np.ndarray) -> float:
    """Return the mean difference in percentage points of EF and the EF of the volumes; NaN without complete samples."""
    complete = np.isfinite(ef) & np.isfinite(esv) & (edv > 0)
    differences = np.abs(ef[complete] - 100 * (edv[complete] - esv[complete]) / edv[complete])
    return float(differences.mean()) if len(differences) else float("nan")


def _sums(predicted: np.ndarray, true: np.ndarray, groups: Sequence[str | None], failed: np.ndarray) -> np.ndarray:
    """Return the sums over each group from which `_figures` computes the figures, [groups, 7]."""
    error = predicted - true
    # Centered, to avoid cancellation in the sum of squares.
    centered = true - (true.mean() if len(true) else 0.0)
    same = (categories(predicted) == categories(true)) & ~failed
    parts = np.stack([np.ones_like(error), np.abs(error), error, error**2, centered, centered**2, same], axis=1)
    rows = group_numbers(groups)
    sums = np.zeros((len(set(rows.tolist())), parts.shape[1]))
    np.add.at(sums, rows, parts)
    return sums


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return the figures [...] of sums [..., 7]; NaN if there are too few samples."""
    count, absolute, error, squared, true, true_squared, same = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        bias = error / count
        deviation = np.sqrt(np.maximum(squared - count * bias**2, 0) / (count - 1))
        total = true_squared - true**2 / count
        return {
            "mae": absolute / count,
            "rmse": np.sqrt(squared / count),
            "r2": np.where(total > 1e-12 * np.maximum(count, 1), 1 - squared / total, np.nan),
            "bias": bias,
            "loa_lower": bias - NORMAL_95 * deviation,
            "loa_upper": bias + NORMAL_95 * deviation,
            "category_agreement": same / count,
        }


def _resampled(sums: np.ndarray, seed: int, resamples: int) -> dict[str, np.ndarray]:
    """Return the figures [resamples] of groups drawn with replacement."""
    count, rng = len(sums), np.random.default_rng(seed)
    if not count:
        return _figures(np.zeros((resamples, sums.shape[1])))
    step = max(1, _CHUNK // count)
    drawn = [
        rng.multinomial(count, np.full(count, 1 / count), min(step, resamples - start)) @ sums
        for start in range(0, resamples, step)
    ]
    return _figures(np.concatenate(drawn))
