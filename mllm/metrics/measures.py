"""Figures about measured numbers, such as EF and volumes: errors, bias and agreement, with bootstrap intervals.

Errors are predicted minus true, in the measure's own unit: percentage points for EF, mL for volumes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from mllm.registry import METRICS
from mllm.structures import UNITS, Answer

CATEGORIES = (30.0, 40.0, 50.0)
"""The borders of EF in percent between severely, moderately, mildly and not reduced; a border belongs to the upper."""
WITH_INTERVAL = ("mae", "rmse", "r2", "bias", "category_agreement")
"""The figures that get a 95 % confidence interval."""
_NORMAL = 1.96
"""Standard deviations around the mean within which 95 % of a normal distribution lie (Bland and Altman 1986)."""
_MOST = 4_000_000
"""Numbers of a bootstrap that are drawn at once."""


def measures(
    predicted: Mapping[str, np.ndarray],
    true: Mapping[str, np.ndarray],
    groups: Sequence[str | None],
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, float]:
    """Figures of every measure in `true`, whose arrays [N] hold NaN where it is unknown.

    For EF: `EF_mae`, `EF_rmse`, `EF_r2` (1 - squared error / squared deviation of the references from their mean),
    `EF_bias` (mean error), `EF_loa_lower` and `EF_loa_upper` (Bland-Altman limits of agreement: bias -/+ 1.96 standard
    deviations of the error, ddof 1), `EF_category_agreement` (the share in the same of < 30, 30 to 40, 40 to 50 and
    >= 50 %; for EF alone). `_ci_low` and `_ci_high` after a name end a 95 % confidence interval, percentiles
    of a bootstrap that draws `groups` (patients; None: the sample is its own) with replacement. `EF_samples` were
    compared, `EF_unknown` have no reference, `EF_failed` have one and no prediction: both are left out of the figures.

    `EF_against_volumes` is the mean of |EF - 100 (EDV - ESV) / EDV| over the predictions, where all three are given.
    """
    result: dict[str, float] = {}
    for name, references in true.items():
        reference = np.asarray(references, float)
        prediction = np.asarray(predicted.get(name, np.full(len(reference), np.nan)), float)
        assert prediction.shape == reference.shape == (len(groups),)
        known = np.isfinite(reference)
        compared = known & np.isfinite(prediction)
        sums = _sums(
            prediction[compared],
            reference[compared],
            [group for group, used in zip(groups, compared, strict=True) if used],
        )
        figures = _figures(sums.sum(axis=0))
        if name != "EF":
            del figures["category_agreement"]
        spread = _resampled(sums, seed, resamples)
        for figure, value in figures.items():
            result[f"{name}_{figure}"] = float(value)
            if figure in WITH_INTERVAL:
                result[f"{name}_{figure}_ci_low"], result[f"{name}_{figure}_ci_high"] = _interval(spread[figure])
        result[f"{name}_samples"] = int(compared.sum())
        result[f"{name}_unknown"] = int((~known).sum())
        result[f"{name}_failed"] = int((known & ~compared).sum())
    if {"EF", "EDV", "ESV"} <= predicted.keys() and "EF" in true:
        result["EF_against_volumes"] = _inconsistency(*(np.asarray(predicted[name]) for name in ("EF", "EDV", "ESV")))
    return result


@METRICS.register_module(name="measures")
def answered_measures(predictions: Sequence[Answer], references: Sequence[Answer]) -> dict[str, float]:
    """Mean absolute error, RMSE, R2, bias, limits of agreement and EF categories of measured numbers, by `measures`.

    Numbers are those of a head or, where an answer has none, those that its text states with their unit
    (`EF 58.4 %, EDV 120.3 mL`). Patients are those of the references.
    """
    assert len(predictions) == len(references)
    told, wanted = (
        [answer.measures or stated_measures(answer.text) for answer in side] for side in (predictions, references)
    )
    names = dict.fromkeys(name for row in wanted for name in row)

    def table(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}

    return measures(table(told), table(wanted), [reference.group for reference in references])


def stated_measures(text: str) -> dict[str, float]:
    """The measures that a text states with their unit; of one stated more than once the first."""
    found: dict[str, float] = {}
    for name, unit in UNITS.items():
        match = re.search(rf"\b{name}\b\D{{0,12}}?(\d+(?:\.\d+)?) ?{re.escape(unit)}", text)
        if match:
            found[name] = float(match[1])
    return found


def categories(ef: np.ndarray) -> np.ndarray:
    """The category of each EF in percent, from 0 (below 30) to 3 (50 and more)."""
    return np.digitize(ef, CATEGORIES)


def _inconsistency(ef: np.ndarray, edv: np.ndarray, esv: np.ndarray) -> float:
    """How many points EF differs on average from what the volumes say; NaN where no sample has all three."""
    given = np.isfinite(ef) & np.isfinite(esv) & (edv > 0)
    gaps = np.abs(ef[given] - 100 * (edv[given] - esv[given]) / edv[given])
    return float(gaps.mean()) if len(gaps) else float("nan")


def _sums(predicted: np.ndarray, true: np.ndarray, groups: Sequence[str | None]) -> np.ndarray:
    """What the figures are made of, summed over each group: [groups, 7]."""
    error = predicted - true
    # Around their mean, so that the squares of large references do not cancel.
    centered = true - (true.mean() if len(true) else 0.0)
    same = categories(predicted) == categories(true)
    parts = np.stack([np.ones_like(error), np.abs(error), error, error**2, centered, centered**2, same], axis=1)
    numbers: dict[object, int] = {}
    rows = [
        numbers.setdefault(index if group is None else str(group), len(numbers)) for index, group in enumerate(groups)
    ]
    sums = np.zeros((len(numbers), parts.shape[1]))
    np.add.at(sums, rows, parts)
    return sums


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The figures of sums [..., 7]; NaN where too few samples are known."""
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
            "loa_lower": bias - _NORMAL * deviation,
            "loa_upper": bias + _NORMAL * deviation,
            "category_agreement": same / count,
        }


def _resampled(sums: np.ndarray, seed: int, resamples: int) -> dict[str, np.ndarray]:
    """The figures [resamples] of groups drawn with replacement."""
    count, rng = len(sums), np.random.default_rng(seed)
    if not count:
        return _figures(np.zeros((resamples, sums.shape[1])))
    step = max(1, _MOST // count)
    drawn = [
        rng.multinomial(count, np.full(count, 1 / count), min(step, resamples - start)) @ sums
        for start in range(0, resamples, step)
    ]
    return _figures(np.concatenate(drawn))


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile of what is known."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
