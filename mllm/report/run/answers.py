"""Tables and charts of the answers of an evaluation: classes, probabilities, numbers, boxes and masks."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm.contents import UNITS, Content, contents_of
from mllm.engine.predictions import answers_of, reference_in
from mllm.metrics.base import StreamingMetric
from mllm.metrics.classification import FAILED, ClassMetric
from mllm.metrics.detection import GreedyDetectionF1
from mllm.metrics.measures import Measures
from mllm.metrics.numbers import NORMAL_95, NumberMetric
from mllm.metrics.parts import hash_of
from mllm.metrics.probabilities import ECE
from mllm.metrics.rankings import AUROC
from mllm.metrics.scoring import Series, tasks_of
from mllm.metrics.segmentation import Dice
from mllm.registry import METRICS
from mllm.report.run.charts import Chart, Dots, Line, chart

MAX_CLASSES = 20
"""Maximum number of classes of a confusion matrix."""
MAX_CURVES = 6
"""Maximum number of classes with a curve of their own."""
MAX_STRUCTURES = 30
"""Maximum number of lines of the tables of structures, the most frequent ones."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix."""

    metric: str
    """Metric whose classes are counted."""
    classes: list[str]
    columns: list[str]
    """Classes, and at the end `other answers` and `unreadable`, if there are any."""
    counts: list[list[int]]
    """Class of the reference -> class of the answer -> number of samples."""

    @property
    def total(self) -> int:
        """Return the number of samples."""
        return sum(map(sum, self.counts))

    def shade(self, row: int, column: int) -> int:
        """Return the percentage of the samples of a class that have an answer."""
        return round(100 * self.counts[row][column] / max(1, sum(self.counts[row])))


def confusion(rows: Sequence[Row], metrics: Iterable[str]) -> tuple[Confusion | None, str]:
    """Return the confusion matrix of the first metric of classes, and a sentence if there are too many classes."""
    for name in (name.partition("/")[0] for name in metrics):
        entry = METRICS.find(name) if name in METRICS.names() else None
        if entry is None or not isinstance(entry, type) or not issubclass(entry, ClassMetric):
            continue
        metric = _added(entry, rows)
        if not len(metric.classes):
            continue
        if len(metric.classes) > MAX_CLASSES:
            return None, f"The references have {len(metric.classes):,} classes, too many for a confusion matrix."
        classes = [*metric.classes]
        counts = np.zeros((len(classes), len(classes) + 2), int)
        for answers in map(metric.read, (part for _, part in metric.parts())):
            others = np.where(answers.predictions == FAILED, len(classes) + 1, answers.predictions)
            np.add.at(counts, (answers.targets, others), 1)
        order = sorted(range(len(classes)), key=classes.__getitem__)
        counts = counts[order][:, [*order, len(classes), len(classes) + 1]]
        names = [classes[number] for number in order]
        columns = [*names, "other answers", "unreadable"]
        used = [column for column in range(len(columns)) if column < len(names) or counts[:, column].any()]
        return Confusion(name, names, [columns[i] for i in used], counts[:, used].tolist()), ""
    return None, ""


def probability_charts(rows: Sequence[Row]) -> list[Chart]:
    """Return ROC, precision-recall and calibration curves of scored options; none without probabilities."""
    ranks, calibration = (_added(entry, (row for row in rows if row.get("scores"))) for entry in (AUROC, ECE))
    if not len(ranks):
        return []
    rankings = ranks.rankings()
    by_size = sorted(rankings, key=lambda ranking: -ranking.targets)[:MAX_CURVES]
    roc: list[Line | Dots] = [Line("chance", [0, 1], [0, 1], -1, is_dashed=True)]
    recall: list[Line | Dots] = []
    areas = []
    for number, ranking in enumerate(by_size):
        name, area = ranking.name, float(ranks.of_ranking(np.ones((1, ranks.units)), ranking)["auroc"][0])
        if not math.isfinite(area):
            continue
        true, false = ranking.curve(ranks.units)
        areas.append(f"{name} {area:.3f}")
        x, y = (np.concatenate([[0.0], part / part[-1]]) for part in (false, true))
        roc.append(Line(f"{name} (AUROC {area:.3f})", x, y, number))
        precision = true / (true + false)
        recall.append(Line(name, np.concatenate([[0.0], y[1:]]), np.concatenate([[precision[0]], precision]), number))
    more = f", the {len(by_size)} most frequent of {len(rankings)} classes" if len(rankings) > len(by_size) else ""
    unit = (-0.02, 1.02)
    charts = []
    if areas:
        text = f"Areas under the curves: {', '.join(areas)}."
        axes = ("false positive rate", "true positive rate")
        charts.append(chart(f"ROC{more}", text, *axes, roc, unit, unit))
        charts.append(chart(f"Precision and recall{more}", text, "recall", "precision", recall, unit, unit))
    charts.append(_calibration(calibration))
    return [drawn for drawn in charts if drawn is not None]


def _calibration(metric: ECE) -> Chart | None:
    """Return the reliability diagram of the most probable options (arXiv:1706.04599)."""
    counts, *sums = (part(np.ones((1, metric.units)))[0] for part in metric.bin_counts())
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (part / counts for part in sums)
    parts: list[Line | Dots] = [
        Line("perfect calibration", [0, 1], [0, 1], -1, is_dashed=True),
        Line("", confidence[counts > 0], accuracy[counts > 0], 0),
        Dots(f"bins of {len(metric):,} samples", confidence, accuracy, 0),
    ]
    known = zip(confidence, accuracy, counts, strict=True)
    text = "; ".join(f"mean probability {p:.2f}, accuracy {a:.2f}, {n:.0f} samples" for p, a, n in known if n)
    unit = (-0.02, 1.02)
    axes = ("probability of the most probable option", "accuracy")
    return chart("Calibration", f"Bins: {text}.", *axes, parts, unit, unit)


@dataclass(frozen=True)
class Agreement:
    """Charts of the agreement of numbers with their references."""

    name: str
    samples: int
    failed: int
    """Number of answers that could not be read; they have the penalty of the metric."""
    charts: list[Chart]


def agreements(rows: Sequence[Row], figures: Mapping[str, Any]) -> list[Agreement]:
    """Return scatter and Bland-Altman plots of numbers (one for each task) and of cardiac measures."""
    results = []
    for name in figures:
        metric_name, _, task = name.partition("/")
        entry = METRICS.find(metric_name) if metric_name in METRICS.names() else None
        if metric_name == "measures":
            results += _measure_agreements(rows)
        elif isinstance(entry, type) and issubclass(entry, NumberMetric):
            title = task or "number"
            if title not in [result.name for result in results]:
                metric = _added(entry, (row for row in rows if not task or row.get("task") == task))
                parts = [metric.read(part) for _, part in metric.parts()]
                answers, references, failed = (np.concatenate(column) for column in zip(*parts, strict=True))
                results += _agreement(title, answers, references, failed)
    return results


def _measure_agreements(rows: Sequence[Row]) -> list[Agreement]:
    results = []
    for name, answers, references in _added(Measures, rows).columns():
        failed = ~np.isfinite(answers)
        results += _agreement(name, np.where(failed, 0.0, answers), references, failed)
    return results


def _agreement(name: str, answers: np.ndarray, references: np.ndarray, failed: np.ndarray) -> list[Agreement]:
    """Return the charts of numbers, [N] each; failed answers have their penalty. Unknown references are left out."""
    known = np.isfinite(references)
    x, y, is_failed = references[known], answers[known], failed[known]
    if not len(x):
        return []
    error, mean = y - x, (x + y) / 2
    bias = float(error.mean())
    reach = NORMAL_95 * float(error.std(ddof=1)) if len(error) > 1 else math.nan
    unit = UNITS.get(name, "")
    label, points = (f"{name} ({unit})" if unit else name), "points" if unit == "%" else unit
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    scatter: list[Line | Dots] = [
        Line("identity", ends, ends, -1, is_dashed=True),
        *_dots(x, y, is_failed),
    ]
    sides = [mean.min(), mean.max()] if mean.min() < mean.max() else [mean[0] - 1, mean[0] + 1]
    lines: list[Line | Dots] = [
        *_dots(mean, error, is_failed),
        Line(f"bias {bias:+.4g} {points}".strip(), sides, [bias, bias], 1),
        *(
            Line(f"{side} limit {limit:+.4g} {points}".strip(), sides, [limit, limit], 1, is_dashed=True)
            for side, limit in (("lower", bias - reach), ("upper", bias + reach))
            if math.isfinite(limit)
        ),
    ]
    text = f"{len(x):,} samples, mean absolute error {np.abs(error).mean():.4g} {points}".strip()
    error_label = "prediction - reference" + (f" ({points})" if points else "")
    limits = f"Bias {bias:+.4g}, limits of agreement {bias - reach:+.4g} to {bias + reach:+.4g} {points}".strip()
    charts = [
        chart(f"{name}: prediction over reference", f"{text}.", f"reference, {label}", f"prediction, {label}", scatter),
        chart(f"{name}: Bland-Altman", f"{limits}.", f"mean of both, {label}", error_label, lines),
    ]
    return [Agreement(name, len(x), int(is_failed.sum()), [part for part in charts if part is not None])]


def _dots(x: np.ndarray, y: np.ndarray, failed: np.ndarray) -> list[Dots]:
    """Return the dots of readable answers and, in another color, those of failed ones."""
    dots = [Dots("samples", x[~failed], y[~failed], 0)] if (~failed).any() else []
    return dots + ([Dots("unreadable, with its penalty", x[failed], y[failed], 2)] if failed.any() else [])


@dataclass(frozen=True)
class StructureRow:
    """Figures of a structure or a class of objects."""

    name: str
    samples: int
    values: list[float]
    """Dice and the limits of its interval; or found, missed and additional boxes."""


def mask_table(rows: Sequence[Row]) -> list[StructureRow]:
    """Return mean Dice with its 95 % interval for all masks and for each structure that rows name as `label`."""
    table = []
    for name, own in _by_label(rows, Dice, lambda kinds: "mask" in kinds).items():
        figures = own.result()
        values = [figures[key] for key in ("dice", "dice_ci_low", "dice_ci_high")]
        table.append(StructureRow(name, int(figures["samples"]), values))
    return table


def box_table(rows: Sequence[Row]) -> list[StructureRow]:
    """Return found, missed and additional boxes at IoU 0.5 for all rows and for each class that they name as `label`.

    Boxes are matched one to one, the pair with the largest IoU first, as in `detection_f1`. Rows without objects count
    if any row has boxes. Masks have a table of their own.
    """
    kinds = (contents_of(reference_in(row)) for row in rows if _may_have_objects(row))
    if not any("objects" in kind and "mask" not in kind for kind in kinds):
        return []
    table = []
    for name, series in _by_label(rows, GreedyDetectionF1, lambda kinds: "mask" not in kinds).items():
        metric: Any = series.metric
        found, predicted, true = metric.table().sum(axis=0)
        if predicted or true:
            values = [float(found), float(true - found), float(predicted - found)]
            table.append(StructureRow(name, metric.samples, values))
    return table


def _by_label(
    rows: Sequence[Row], entry: type[StreamingMetric], is_used: Callable[[set[Content]], bool]
) -> dict[str, Series]:
    """Return the answers of all rows, and those of each label, the most frequent ones first.

    Labels can be as many as rows, so they are first counted by hashes, in 8 bytes a row. Of equally frequent labels,
    the one that stands first is kept.

    Args:
        rows: Rows of `predictions.jsonl`.
        entry: Metric of the answers.
        is_used: Function of the contents of a reference; False: its row is left out.
    """
    hashes = array("Q")
    for row in rows:
        label = _label(row)
        if label and is_used(contents_of(reference_in(row))):
            hashes.append(hash_of(label))
    values, first, counts = np.unique(np.array(hashes, np.uint64), return_index=True, return_counts=True)
    frequent = set(values[np.lexsort((first, -counts))[:MAX_STRUCTURES]].tolist())
    whole, parts = Series(entry), dict[str, Series]()
    for row in rows:
        prediction, reference = answers_of(row)
        if not is_used(contents_of(reference)):
            continue
        whole.add(prediction, reference)
        label = _label(row)
        if label and hash_of(label) in frequent:
            if label not in parts:
                parts[label] = Series(entry)
            parts[label].add(prediction, reference)
    if not whole.samples:
        return {}
    names = sorted(parts, key=lambda name: (-parts[name].samples, name))
    return {"all": whole, **({name: parts[name] for name in names if name != "all"} if len(names) > 1 else {})}


def _may_have_objects(row: Row) -> bool:
    """Return False for a reference without boxes, masks and a text that lists boxes."""
    return "reference_boxes" in row or "reference_masks" in row or str(row["reference"]).lstrip()[:1] == "["


def _label(row: Row) -> str:
    return str(row.get("label") or "")


def _added(entry: type[StreamingMetric], rows: Iterable[Row]) -> Any:
    """Return a metric after reading the answers of the rows that it is for."""
    tasks, series = tasks_of(entry), Series(entry)
    for row in rows:
        if not tasks or row.get("task") is None or row["task"] in tasks:
            series.add(*answers_of(row))
    return series.metric
